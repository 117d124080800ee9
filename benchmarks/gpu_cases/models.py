"""Models with random weights: of published sizes on a GPU, tiny ones of the same classes elsewhere."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from benchmarks.sizes import tiny
from benchmarks.sizes.measuring import default_precision, has_setting, tokenizer
from benchmarks.sizes.shapes import SD15_DIFFUSION, SHAPES, SHIPPED, Shape
from rlcm.pipelines import ModelSettings

FULL = {**SHAPES, "sd15-diffusion": SD15_DIFFUSION}
DIFFUSION = ("ddpo-dreamshaper-v7-*", "sd-turbo")
"""Configurations of a model without the guidance input of an LCM."""


def shape_named(name: str, is_tiny: bool) -> Shape:
    """Return a shape, of published size or tiny."""
    return (tiny.TINY if is_tiny else FULL)[name]


def shape_for(config: str) -> str | None:
    """Return the name of the shape that stands for a configuration's model; None for the built-in models, which are there."""
    if any(fnmatch(config, pattern) for pattern in DIFFUSION):
        return "sd15-diffusion"
    return next((name for pattern, name in SHIPPED.items() if fnmatch(config, pattern)), None)


def make(name: str, is_tiny: bool, dtype: torch.dtype, settings: ModelSettings | None = None) -> Any:
    """Return a pipeline with random weights, frozen, on the GPU where there is one.

    Args:
        settings: what saves memory in it is switched on, as loading would.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device, default_precision(dtype), torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = shape_named(name, is_tiny).pipeline(tokenizer(), False)
        if is_tiny:
            tiny.stir(pipeline)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    if settings is not None:
        _save_memory(pipeline, settings)
    elif hasattr(pipeline, "vae"):
        pipeline.vae.enable_slicing()
    return pipeline


def _save_memory(pipeline: Any, settings: ModelSettings) -> None:
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    vae = getattr(pipeline, "vae", None)
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if settings.vae_slicing and vae is not None:
        vae.enable_slicing()
    if getattr(settings, "channels_last", False):
        network.to(memory_format=torch.channels_last)
    if settings.offload_text_encoders:
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if getattr(pipeline, name, None) is not None:
                getattr(pipeline, name).to("cpu")


@contextmanager
def tf32(allowed: bool) -> Iterator[dict[str, Any]]:
    """Within it, products and convolutions in fp32 may round to TF32; yields the settings of the model that say so, if any do."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield {"tf32": allowed} if has_setting("tf32") and torch.cuda.is_available() else {}
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def clear() -> None:
    """Give back what a case has left on the GPU, and count its next peak from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if "torch._dynamo" in sys.modules:  # something was compiled
        torch.compiler.reset()


def peak() -> int | None:
    """Return the most bytes of tensors that were on the GPU at once since `clear`; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
