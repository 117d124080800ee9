"""What belongs to the thread that calls user code: looked at before code that is called in the run's own thread, and put back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rlcm.rewards.surroundings import Trait

_DEVICES = ("cpu", *(name for name in ("cuda", "mps", "xpu") if torch.amp.is_autocast_available(name)))


def _autocast() -> tuple[Any, ...]:
    """Return how deep autocast is entered, whether it keeps what it cast, and to which dtype it casts, device by device."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    casts = [(torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in _DEVICES]
    return depth, torch.is_autocast_cache_enabled(), casts


def _set_autocast(before: tuple[Any, ...]) -> None:
    depth, keeps, casts = before
    while (now := _autocast()[0]) != depth:
        (torch.autocast_decrement_nesting if now > depth else torch.autocast_increment_nesting)()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(keeps)
    for name, (is_on, dtype) in zip(_DEVICES, casts, strict=True):
        torch.set_autocast_enabled(name, is_on)
        torch.set_autocast_dtype(name, dtype)


def _set_device(before: torch.device) -> None:
    torch.set_default_device(None)  # the CPU, as nobody has set it
    if torch.get_default_device() != before:
        torch.set_default_device(before)


def _set_inference(before: bool) -> None:
    grad = torch.is_grad_enabled()  # which the mode sets, too
    mode = torch.inference_mode(before)
    mode.__enter__()
    _ENTERED.append(mode)  # its end would bring back what was left on
    torch.set_grad_enabled(grad)


_ENTERED: list[torch.inference_mode] = []


def _gpu() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _set_gpu(before: int | None) -> None:
    if before is not None:
        torch.cuda.set_device(before)


THREAD_TRAITS = (
    Trait("torch's autocast", _autocast, _set_autocast),
    Trait("torch's default device", torch.get_default_device, _set_device),
    Trait("torch's inference mode", torch.is_inference_mode_enabled, _set_inference),
    Trait("the GPU in use", _gpu, _set_gpu, lambda before, after: before is not None and before != after),
    Trait("NumPy's errstate", np.geterr, lambda state: np.seterr(**state)),
)
"""Torch's grad mode is not among them: it is put back without a word. Handlers of signals are not, either: a second Ctrl-C within a
callback takes the run's own away."""
