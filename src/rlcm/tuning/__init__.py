"""What most programs need: train a model in one call, and take what came of it in hand."""

from __future__ import annotations

from rlcm.tuning.call import train
from rlcm.tuning.result import Result, load

__all__ = ["Result", "load", "train"]
