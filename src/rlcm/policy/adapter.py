"""The trained adapter as a file: a LoRA written in diffusers' format, read back, and added to a network's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from rlcm.errors import WeightsError
from rlcm.paths import command
from rlcm.policy.policy import ADAPTER, AdapterSettings, Policy, targets
from rlcm.runs.refusals import run_errors
from rlcm.runs.serialization import write_bytes
from rlcm.runs.weights import listed, read_weights, require_floats

_OWN_KEY = re.compile(r"(unet|transformer)\.(?P<layer>.+)\.lora_(?P<letter>[AB])\.weight")


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

    Raises:
        MissingFileError: if there is no such file.
        WeightsError: if it is damaged, or none that `save_lora` wrote for these settings.
    """
    try:
        tensors, _ = read_weights(weights)
        require_floats(tensors.items(), str(weights))
    except WeightsError as error:
        raise WeightsError(f"{error} {_remedy(weights)}") from error
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _OWN_KEY.fullmatch(key)
        if match is None:
            raise _foreign(weights, f"it holds {key}, which no training by rlcm writes")
        layers.setdefault(match["layer"], {})[match["letter"]] = tensor
    scale = settings.alpha / settings.rank
    found = {}
    for layer, pair in layers.items():
        if len(pair) < 2:
            raise _foreign(weights, f"{layer} has one of its two factors only")
        down, up = pair["A"].float(), pair["B"].float()
        if down.dim() < 2 or down.dim() != up.dim() or {len(down), up.shape[1]} != {settings.rank}:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise _foreign(weights, f"the factors of {layer}, {shapes}, are not of the run's lora.rank={settings.rank}")
        found[layer] = Factors(down, up / scale, settings.alpha)
    return found


def check_lora(network: nn.Module, lora: Mapping[str, Factors], settings: AdapterSettings, weights: Path) -> None:
    """Check that a LoRA is that of a network, layer by layer; one without storage for its weights will do.

    Args:
        lora: as `read_lora` returns it.
        weights: the file that it is from, for messages.

    Raises:
        WeightsError: if a layer is missing, is not there, or has another shape.
    """
    layers = targets(network, settings)
    if absent := sorted(layers.keys() - lora.keys()):
        raise _foreign(weights, f"it has nothing for {listed(absent)}, which the run trains")
    if left := sorted(lora.keys() - layers.keys()):
        raise _foreign(weights, f"it is for {listed(left)}, which the run does not train")
    for name, layer in layers.items():
        # The weights of a quantised layer are laid out otherwise.
        shape = (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)
        down, up = lora[name].down, lora[name].up
        if down.shape[1:] != shape[1:] or up.flatten(1).shape != (shape[0], len(down)):
            raise _foreign(weights, f"the factors of {name} do not fit the model's layer {shape}")


def adapter_weights(policy: Policy, lora: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return a LoRA as the weights of a policy's adapter, for `Policy.load`."""
    weights = {}
    for parameter in policy.named_parameters:
        layer, _, matrix = parameter.partition(".lora_")
        weights[parameter] = lora[layer].down if matrix.startswith("A.") else lora[layer].up
    return weights


@torch.no_grad()
def add_lora(network: nn.Module, lora: Mapping[str, Factors]) -> None:
    """Add a LoRA to the weights of a network: the sum is taken in fp32, and rounded to their precision.

    Raises:
        WeightsError: if a sum is beyond what their precision can hold.
    """
    for name, factors in lora.items():
        weight: Any = network.get_submodule(name).weight
        total = (weight.float() + factors.change().to(weight.device)).to(weight.dtype)
        if not total.isfinite().all():
            raise WeightsError(
                f"a LoRA's change of {name} is beyond {str(weight.dtype).removeprefix('torch.')}; take fp32 (model.precision=fp32, or "
                "--precision fp32 of an export), or a smaller scale of the LoRA."
            )
        weight.copy_(total)


def _foreign(weights: Path, reason: str) -> WeightsError:
    return WeightsError(f"{weights} is not the LoRA of this run: {reason}. {_remedy(weights)}")


def _remedy(weights: Path) -> str:
    resume = command("rlcm", "train", "--resume", weights.parent.parent)
    if weights.parent.name == "best":
        return f"To have the weights of the last round as the result: {resume} evaluation.final=last"
    return f"Where the run has a checkpoint, its LoRA is written again by: {resume}"
