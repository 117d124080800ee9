"""The trained adapter as a file: a LoRA written in diffusers' format, read back, and added to a network's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from rlcm.policy.policy import ADAPTER, AdapterSettings, Policy
from rlcm.runs.rundir import run_errors
from rlcm.runs.serialization import write_bytes


@dataclass(frozen=True, slots=True)
class Factors:
    """One layer's low-rank change.

    change of the weight = (alpha / r) up down
    """

    down: Tensor
    """[r, in] of a linear layer, [r, in, k, k] of a convolution."""
    up: Tensor
    """[out, r], or [out, r, 1, 1]."""
    alpha: float

    def change(self) -> Tensor:
        """Return the change of the layer's weight, fp32: [out, in], or [out, in, k, k]."""
        up, down = self.up.float().flatten(1), self.down.float()
        return (self.alpha / len(down)) * torch.einsum("or,r...->o...", up, down)


Lora = Mapping[str, Factors]
"""A LoRA: the factors of every layer, by the layer's name."""


def save_lora(policy: Policy, file: Path) -> None:
    """Write the adapter in diffusers' LoRA format.

    The factor alpha / rank is multiplied into the up matrices, so that the adapter comes out at full strength in every
    loader, those that ignore alpha or take it to be the rank included.
    """
    scale = policy.settings.alpha / policy.settings.rank
    network = getattr(policy.denoiser, "network", "unet")
    tensors: dict[str, Tensor] = {}
    for name, tensor in get_peft_model_state_dict(policy.denoiser.module, adapter_name=ADAPTER).items():
        value = tensor.detach().float().cpu()
        tensors[f"{network}.{name}"] = (value * scale if ".lora_B." in name else value).contiguous()
    with run_errors(file):
        write_bytes(file, to_bytes(tensors, metadata={"format": "pt"}))


def read_lora(settings: AdapterSettings, weights: Path) -> dict[str, Factors]:
    """Return the factors of a saved LoRA by layer, with the alpha that it was trained with.

    The file has alpha / rank multiplied into its up matrices; here it is taken out of them again.
    """
    tensors: dict[str, Tensor] = load_file(weights)
    downs = {key.split(".", 1)[1].removesuffix(".lora_A.weight"): key for key in tensors if key.endswith(".lora_A.weight")}
    scale = settings.alpha / settings.rank
    return {
        name: Factors(tensors[key], tensors[key.replace(".lora_A.", ".lora_B.")] / scale, settings.alpha)
        for name, key in downs.items()
    }


@torch.no_grad()
def add_lora(network: nn.Module, lora: Mapping[str, Factors]) -> None:
    """Add a LoRA to the weights of a network: the sum is taken in fp32, and rounded to their precision."""
    for name, factors in lora.items():
        weight: Any = network.get_submodule(name).weight
        weight.copy_(weight.float() + factors.change().to(weight.device))
