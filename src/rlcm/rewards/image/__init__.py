"""Rewards of the picture alone: measures of its pixels, and the size that it takes as a file."""

from __future__ import annotations

from rlcm.rewards.image.jpeg import Compressibility, Incompressibility
from rlcm.rewards.image.measures import Brightness, Colourfulness, Sharpness

__all__ = ["Brightness", "Colourfulness", "Compressibility", "Incompressibility", "Sharpness"]
