"""A run: its configuration, its rounds, and the loop over them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlcm.training.config import TrainConfig, load_config
    from rlcm.training.trainer import Trainer

__all__ = ["TrainConfig", "Trainer", "load_config"]

_HOMES = {"Trainer": "rlcm.training.trainer", "TrainConfig": "rlcm.training.config", "load_config": "rlcm.training.config"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: the configuration needs no trainer."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rlcm.training' has no attribute {name!r}")
