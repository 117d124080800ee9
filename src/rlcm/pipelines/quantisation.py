"""Frozen weights in 8 or 4 bits: the linear layers of the network that is trained, for cards with little memory."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from rlcm.errors import ConfigError
from rlcm.extras import to_install
from rlcm.pipelines.settings import ModelSettings

PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
"""What computes with the weights, by `model.quantisation`; the extra `quant` installs both."""
DEVICES = {"int8": ("cpu", "cuda", "mps"), "nf4": ("cpu", "cuda")}
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in nf4: half a one, an 8-bit scale for 64 of them, and an fp32 scale for 256 of these scales."""


def check_quantisation(settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a quantisation that this machine cannot compute with, before weights are read.

    Raises:
        ConfigError: if its package is missing, or the device or the precision does not go with it.
    """
    kind = settings.quantisation
    if kind == "none":
        return
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        raise ConfigError(
            f"model.quantisation={kind} needs a package that is not installed, {PACKAGES[kind]}: {to_install('quant')}, or "
            "use model.quantisation=none."
        )
    if device.type not in DEVICES[kind]:
        others = " or ".join(f"model.quantisation={name}" for name, devices in DEVICES.items() if device.type in devices)
        raise ConfigError(
            f"model.quantisation={kind} computes on {' or '.join(DEVICES[kind])}, and the device is {device.type}; use "
            f"{others or 'model.quantisation=none'}, or another model.device."
        )
    if kind == "int8" and dtype == torch.float16:
        raise ConfigError(
            f"model.quantisation=int8 goes with bf16 or fp32, and model.precision={settings.precision} is fp16 here, in which the "
            "sums of products with 8-bit weights overflow; use model.quantisation=nf4, or model.precision=bf16 where the device "
            "has it."
        )


@torch.no_grad()
def quantise(network: nn.Module, kind: str) -> None:
    """Put the weights of a network's linear layers into 8 or 4 bits, in place.

    Convolutions, norms, biases and LoRAs stay as they are, and so do the layers that the network's class keeps in fp32. What is
    computed with the weights has the precision that they had before. 4-bit weights get theirs when the network is next moved
    to a device.

    Args:
        network: on the CPU, or without storage.
        kind: `int8` or `nf4`.
    """
    layers = linear_layers(network)
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        chosen = {id(layer) for layer in layers.values()}
        # False: torchao would change global settings of torch.compile, and let every fp32 product use TF32.
        config = Int8WeightOnlyConfig(set_inductor_config=False)
        quantize_(network, config, filter_fn=lambda layer, name: id(layer) in chosen)
        return
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, _in_4_bits(layer))
    network.is_loaded_in_4bit = True  # type: ignore[assignment]  # how peft and diffusers know


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers of a network that quantisation takes, by name."""
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    return {
        name: layer
        for name, layer in network.named_modules()
        if type(layer) is nn.Linear and ".lora_" not in name and kept.isdisjoint(name.split("."))
    }


def is_quantised(parameter: torch.Tensor) -> bool:
    """Return whether a parameter holds its numbers in 8 or 4 bits, or will once it is on its device."""
    return _is_torchao(parameter) or hasattr(parameter, "quant_state")


def entries(parameter: torch.Tensor) -> int:
    """Return how many weights a parameter stands for: 4-bit ones are stored two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def stored_bytes(parameter: torch.Tensor) -> int:
    """Return the bytes of a parameter as it is stored, with the scales of a quantised one."""
    if _is_torchao(parameter):
        inside: Any = parameter
        return sum(stored_bytes(getattr(inside, name)) for name in inside.__tensor_flatten__()[0])
    if hasattr(parameter, "quant_state"):
        return round(entries(parameter) * NF4_BYTES)
    return parameter.numel() * parameter.element_size()


def kept_for_backward(network: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of weights in full precision that a backward pass through the whole network keeps.

    torchao's 8-bit layers are put into full precision for their product, and autograd keeps that copy for the gradient of their
    input; with gradient checkpointing it is there for one block at a time. bitsandbytes makes it anew.
    """
    return sum(p.numel() for p in network.parameters() if _is_torchao(p)) * dtype.itemsize


def _is_torchao(parameter: torch.Tensor) -> bool:
    return type(parameter).__module__.startswith("torchao")


def _in_4_bits(layer: nn.Linear) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    options = {"quant_type": "nf4", "compress_statistics": True}
    new = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        device="meta",
        **options,
    )
    new.weight = Params4bit(layer.weight.data, requires_grad=False, module=new, **options)
    new.bias = layer.bias
    # CPUs with AVX-512 bf16 would pack the weights while sampling, for kernels through which no gradient flows afterwards.
    new.support_avx512bf16_for_cpu = False
    return new.train(layer.training)
