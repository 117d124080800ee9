"""Plain RLCM: what benchmarks of single parts start from, so that they stay comparable whatever the default becomes."""

from __future__ import annotations

from typing import Any

from rlcm.settings import merge
from rlcm.training.config import TrainConfig, parse_settings

PLAIN: dict[str, Any] = {
    "rewards": ["jpeg_compressibility"],
    "rollout": {"batch_size": 64, "branches": 1, "branch_schedule": "last"},
    "algorithm": {"advantage": "prompt_statistics", "kl_coefficient": 0.0, "kl_target": None},
    "optimizer": {"lr": 1e-4, "schedule": "constant", "max_pace": 1.0},
    "evaluation": {"images": 90, "every": 10, "grid": 16},
}
"""One trajectory an image, statistics of every prompt, no leash."""


def plain(values: dict[str, Any]) -> TrainConfig:
    """Return the configuration of plain RLCM with these changes of nested settings."""
    return parse_settings(TrainConfig, merge(PLAIN, values))
