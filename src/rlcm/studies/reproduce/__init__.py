"""The paper's experiments in miniature: RLCM against DDPO on the built-in pair of models, one command, resumable."""

from __future__ import annotations

from rlcm.studies.reproduce.plan import EXPERIMENTS, TASKS, Plan
from rlcm.studies.reproduce.work import reproduce

__all__ = ["EXPERIMENTS", "TASKS", "Plan", "reproduce"]
