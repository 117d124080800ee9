"""Tensors on their way from main memory to an accelerator, without a wait."""

from __future__ import annotations

import torch
from torch import Tensor

UNPINNED = ("cpu", "mps")
"""Devices to which nothing is gained by memory that is pinned."""


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on `device`. From main memory it is copied while the program goes on, by way of pinned memory."""
    device = torch.device(device)
    if tensor.device.type != "cpu" or device.type in UNPINNED:
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)
