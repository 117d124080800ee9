"""Fine-tune few-step text-to-image models with reinforcement learning, on any reward, fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlcm._moved import keep_former_names
from rlcm._version import __version__

if TYPE_CHECKING:
    from rlcm.training.config import TrainConfig, load_config
    from rlcm.training.trainer import Trainer

__all__ = ["TrainConfig", "Trainer", "__version__", "load_config"]

_HOMES = {"Trainer": "rlcm.training.trainer", "TrainConfig": "rlcm.training.config", "load_config": "rlcm.training.config"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: `rlcm --help` needs none of them."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rlcm' has no attribute {name!r}")


keep_former_names()
