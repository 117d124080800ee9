"""What goes into a mix of rewards and what comes out of it: its parts, their raw scores, and the mixed ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcm.errors import RewardError
from rlcm.rewards.settings import TIMEOUT_SECONDS, OnFailure


class RewardPart(NamedTuple):
    """One reward of a mix."""

    label: str
    """What it is called in logs and tables."""
    reward: Callable[..., Any]
    """From images and prompts to values; see `rlcm.types.Reward`."""
    weight: float = 1.0
    """Its factor in the sum."""
    normalise: bool = False
    """Bring it to unit scale before weighting."""
    on_failure: OnFailure = "stop"
    """What is done where it fails: `stop`, or `skip` the samples."""
    timeout_seconds: float = TIMEOUT_SECONDS
    """How long one call may take."""


@dataclass(slots=True)
class RawScores:
    """What the rewards answered, before normalising and weighting."""

    parts: dict[str, Tensor]
    """[B] fp32 on the CPU by label, or by label/component; NaN where a sample was dropped."""
    valid: Tensor
    """[B] bool: scored by every reward. Only a reward set to `on_failure: skip` can make it False."""
    failures: list[str] = field(default_factory=list)
    """What went wrong where samples were dropped, one text a failed reward."""

    @staticmethod
    def cat(batches: Sequence[RawScores]) -> RawScores:
        """Return the scores of all batches, in order; a component that a batch lacks is NaN there.

        Raises:
            RewardError: if valid samples of two batches have different components.
        """
        labels = list(dict.fromkeys(label for batch in batches for label in batch.parts))
        for batch in batches:
            missing = [label for label in labels if label not in batch.parts]
            if missing and batch.valid.any():
                raise RewardError(f"the reward component {missing[0]} is in some batches and not in others.")
        parts = {
            label: torch.cat([batch.parts.get(label, torch.full((len(batch.valid),), math.nan)) for batch in batches])
            for label in labels
        }
        valid = torch.cat([batch.valid for batch in batches])
        return RawScores(parts, valid, [text for batch in batches for text in batch.failures])


@dataclass(slots=True)
class Scores:
    """The mixed reward of B samples, and what it is made of."""

    total: Tensor
    """[B] fp32: the weighted sum; NaN, never zero, where `valid` is False. On the CPU and without gradient, but for
    `RewardMix.differentiable`."""
    parts: dict[str, Tensor]
    """[B] fp32 on the CPU: the rewards' own values by label, before normalising and weighting."""
    valid: Tensor
    """[B] bool: samples to learn from; the others drop out of the round."""
    failures: list[str]
    """What went wrong where samples were dropped."""

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether every reward of every sample to learn from is 0 or 1."""
        return all(bool(((part == 0) | (part == 1))[self.valid].all()) for part in self.parts.values())
