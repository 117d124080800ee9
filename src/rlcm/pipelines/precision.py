"""Devices and precisions: what `auto` means here, and whether what was asked for exists."""

from __future__ import annotations

import torch

from rlcm.errors import ConfigError
from rlcm.pipelines.settings import ModelSettings

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """Return the device that model.device names; `auto` takes CUDA, then Apple's mps, then the CPU.

    Raises:
        ConfigError: if this machine lacks it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"has {torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "has no usable CUDA device"
        raise ConfigError(
            f"model.device={name!r}, but this machine {found}; use auto or cpu, or install a CUDA build of torch."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("model.device='mps', but this machine has no Apple GPU; use auto or cpu.")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the precision of the frozen weights.

    `auto` is bf16 where the GPU computes it natively and fp16 on older CUDA GPUs. On CPU it is fp32, because a CPU without
    native bf16 emulates it a hundred times slower; on mps it is fp32 too.
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.get_device_capability(device)[0] >= 8 or torch.version.hip is not None
    return torch.bfloat16 if native else torch.float16


def resolve(settings: ModelSettings) -> tuple[torch.device, torch.dtype]:
    """Return device and precision of the settings."""
    device = resolve_device(settings.device)
    return device, resolve_dtype(settings.precision, device)
