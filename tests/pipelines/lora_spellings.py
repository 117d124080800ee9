"""One LoRA for the tiny pipelines in every spelling that is met, made from plain factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlcm.policy.adapter import Factors
from rlcm.policy.policy import adaptable_layers

RANK, ALPHA = 2, 3.0
Spelt = dict[str, Tensor]


def factors_for(network: Any, *ends: str, seed: int = 4, size: float = 0.3) -> dict[str, Factors]:
    """Return random factors of rank 2 and alpha 3 for the layers whose names end in one of `ends`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in adaptable_layers(network).items():
        if name.endswith(ends):
            rows, *inputs = layer.weight.shape
            down = size * torch.randn(RANK, *inputs, generator=generator)
            up = size * torch.randn(rows, RANK, *(1 for _ in inputs[1:]), generator=generator)
            found[name] = Factors(down, up, ALPHA)
    return found


def _spelt(lora: Mapping[str, Factors], down: Callable[[str], str], up: Callable[[str], str], *, folded: bool) -> Spelt:
    """Return the tensors under other names; `folded`: with the strength in the up matrix, where a spelling has no alpha."""
    tensors = {}
    for name, part in lora.items():
        tensors[down(name)] = part.down.clone()
        tensors[up(name)] = part.up * (part.alpha / RANK if folded else 1)
    return tensors


def peft(lora: Mapping[str, Factors], prefix: str = "", adapter: str = "", *, folded: bool = True) -> Spelt:
    """Return the spelling `<prefix><layer>.lora_A.<adapter.>weight`."""
    return _spelt(
        lora, lambda n: f"{prefix}{n}.lora_A.{adapter}weight", lambda n: f"{prefix}{n}.lora_B.{adapter}weight", folded=folded
    )


def dotted(lora: Mapping[str, Factors], prefix: str = "unet.") -> Spelt:
    """Return the spelling `<prefix><layer>.lora.down.weight` of diffusers before PEFT."""
    return _spelt(lora, lambda n: f"{prefix}{n}.lora.down.weight", lambda n: f"{prefix}{n}.lora.up.weight", folded=True)


def processors(lora: Mapping[str, Factors], prefix: str = "unet.") -> Spelt:
    """Return the first spelling of diffusers: `<block>.processor.to_q_lora.down.weight`."""

    def name(layer: str, letter: str) -> str:
        block, _, last = layer.removesuffix(".0").rpartition(".")
        return f"{prefix}{block}.processor.{last}_lora.{letter}.weight"

    return _spelt(lora, lambda n: name(n, "down"), lambda n: name(n, "up"), folded=True)


def kohya(lora: Mapping[str, Factors], prefix: str = "lora_unet_", separator: str = "_") -> Spelt:
    """Return the spelling of kohya's scripts, or with a dot as separator that of ComfyUI, with alphas."""
    names = {layer: prefix + layer.replace(".", separator) for layer in lora}
    spelt = _spelt(lora, lambda n: f"{names[n]}.lora_down.weight", lambda n: f"{names[n]}.lora_up.weight", folded=False)
    return spelt | {f"{names[layer]}.alpha": torch.tensor(part.alpha) for layer, part in lora.items()}
