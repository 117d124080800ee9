"""Which settings would make a run faster on its device, without changing what it learns beyond rounding."""

from __future__ import annotations

import torch
from torch import nn

from rlcm.doctor.findings import Finding
from rlcm.training.config import TrainConfig

LONG = 50
"""Rounds from which compiling, which takes the time of a few, is worth it."""


def faster(config: TrainConfig, device: torch.device, dtype: torch.dtype, network: nn.Module) -> list[Finding]:
    """Return one finding with the settings that are left to try on a CUDA device; none elsewhere, and none where all are on.

    Args:
        config: of the run.
        device: of the network.
        dtype: of its frozen weights.
        network: the one that is trained.
    """
    if device.type != "cuda":
        return []
    convolutions = any(isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) for layer in network.modules())
    model = config.model
    left = {
        "model.compile=true": not model.compile and config.run.rounds >= LONG,
        "model.channels_last=true": not model.channels_last and convolutions and dtype != torch.float32,
        "model.tf32=true": not model.tf32 and dtype == torch.float32 and torch.cuda.get_device_capability(device)[0] >= 8,
        "optimizer.fused=auto": config.optimizer.fused == "never",
    }
    found = [setting for setting, is_left in left.items() if is_left]
    if not found:
        return []
    return [Finding("faster", f"not tried by this configuration: {', '.join(found)} (docs/performance.md says what each does)")]
