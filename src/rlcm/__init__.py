"""Fine-tune few-step text-to-image models with reinforcement learning, on any reward, fast."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlcm._moved import keep_former_names
from rlcm._version import __version__

if TYPE_CHECKING:
    from rlcm.training.config import TrainConfig, load_config
    from rlcm.training.trainer import Trainer
    from rlcm.tuning import Result, load, train

__all__ = ["Result", "TrainConfig", "Trainer", "__version__", "load", "load_config", "train"]

# Diffusers imports onnxruntime with any pipeline where it is installed, and that reports to its makers unless it is told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# What torchao and bitsandbytes, where they are installed, say when peft or diffusers import them, whether they are used or not.
for _name in (
    "torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer", "bitsandbytes.backends.cpu.ops",
):  # fmt: skip
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(logging.ERROR)

_HOMES = {
    "Result": "rlcm.tuning",
    "TrainConfig": "rlcm.training.config",
    "Trainer": "rlcm.training.trainer",
    "load": "rlcm.tuning",
    "load_config": "rlcm.training.config",
    "train": "rlcm.tuning",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: `rlcm --help` needs none of them."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rlcm' has no attribute {name!r}")


keep_former_names()
