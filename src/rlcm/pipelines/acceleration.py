"""What makes a network faster where the machine can: TF32, the order of its weights in memory, and compilation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlcm.errors import ConfigError

GRAPHS = 64
"""Graphs that one block may be compiled to."""


def use_tf32(wanted: bool, device: torch.device) -> None:
    """Let fp32 products and convolutions of NVIDIA GPUs use TF32, or see to it that none of them does.

    torch lets convolutions use it unless it is told otherwise. The choice holds for the whole process.

    Raises:
        ConfigError: if it is wanted and the device has none.
    """
    if wanted and not (device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8):
        raise ConfigError(
            f"model.tf32=true, but TF32 is a format of NVIDIA GPUs from the Ampere generation on, and this run is on a {device.type} "
            "device without it; leave model.tf32 at false."
        )
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = wanted
        torch.backends.cudnn.allow_tf32 = wanted


def order_channels_last(pipeline: Any, network: str) -> None:
    """Lay out the weights of convolutions with the channels last: what tensor cores read fastest.

    Raises:
        ConfigError: if the network has no convolutions over images.
    """
    module: nn.Module = getattr(pipeline, network)
    if not any(isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) for layer in module.modules()):
        raise ConfigError(
            f"model.channels_last=true, but {type(module).__name__} is no network of convolutions; leave it at false."
        )
    parts: tuple[Any, ...] = (module, getattr(pipeline, "vae", None))
    for part in parts:
        if part is not None:
            part.to(memory_format=torch.channels_last)


def compile_network(module: Any, device: torch.device) -> None:
    """Compile the blocks that a network repeats, as diffusers does it: seconds for one block in place of minutes for all of them.

    A network that names no such blocks is compiled whole. What is compiled depends on the shapes; see
    `rlcm.learning.micro_batches`.

    Raises:
        ConfigError: if the machine has no compiler for the device.
    """
    require_compiler(device)
    # A graph for every width of a block, shape of a batch, and with and without gradient or adapter: past the limit torch would go
    # on uncompiled without a word.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    if getattr(module, "_repeated_blocks", None):
        module.compile_repeated_blocks()
    else:
        module.compile()


def require_compiler(device: torch.device) -> None:
    """Check that there is a compiler: a C++ compiler for CPUs, Triton for GPUs.

    Raises:
        ConfigError: if there is none.
    """
    missing = "Triton" if device.type in ("cuda", "xpu") else "a C++ compiler such as g++"
    if device.type == "mps" or not _has_compiler(device):
        raise ConfigError(
            f"model.compile=true, but there is no compiler for the {device.type} device on this machine"
            + ("" if device.type == "mps" else f": install {missing}")
            + "; or leave model.compile at false."
        )


def _has_compiler(device: torch.device) -> bool:
    if device.type in ("cuda", "xpu"):
        from torch.utils._triton import has_triton

        return has_triton()
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False
