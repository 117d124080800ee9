"""Rewards that ask a vision-language model, by an OpenAI-compatible endpoint (vLLM, SGLang, hosted) or a local model."""

from __future__ import annotations

from rlcm.rewards.vlm.rewards import VlmAlignment, VlmRating, VlmYes
from rlcm.rewards.vlm.settings import VlmSettings

__all__ = ["VlmAlignment", "VlmRating", "VlmSettings", "VlmYes"]
