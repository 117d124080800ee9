"""Rewards: what an image is worth. A room a family; `composition` mixes them, `build` finds them by name."""

from __future__ import annotations

from rlcm.rewards.build import BUILT_IN, build_reward, build_rewards
from rlcm.rewards.composition import RawScores, RewardMix, RewardPart, Scores
from rlcm.rewards.settings import RewardList, RewardSettings

__all__ = [
    "BUILT_IN",
    "RawScores",
    "RewardList",
    "RewardMix",
    "RewardPart",
    "RewardSettings",
    "Scores",
    "build_reward",
    "build_rewards",
]
