"""Fine-tune few-step text-to-image models with reinforcement learning, on any reward, fast."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlcm._moved import keep_former_names
from rlcm._version import __version__

if TYPE_CHECKING:
    from rlcm.training.config import TrainConfig, load_config
    from rlcm.training.trainer import Trainer

__all__ = ["TrainConfig", "Trainer", "__version__", "load_config"]

# Diffusers imports onnxruntime with any pipeline where it is installed, and that reports to its makers unless it is told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {"Trainer": "rlcm.training.trainer", "TrainConfig": "rlcm.training.config", "load_config": "rlcm.training.config"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: `rlcm --help` needs none of them."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rlcm' has no attribute {name!r}")


keep_former_names()
