"""LoRAs that a model is given before training: every tensor of a file finds its layer, or the file is refused."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlcm.errors import WeightsError
from rlcm.pipelines.lora_files import LoraFile
from rlcm.pipelines.lora_names import Place, known_names, read_key
from rlcm.pipelines.settings import LoraSettings
from rlcm.policy.adapter import Factors, add_lora
from rlcm.policy.policy import adaptable_layers
from rlcm.runs.weights import listed, require_floats

logger = logging.getLogger(__name__)

BASE_ADAPTER = "base"
_TEXT = ("text_encoder", "lora_te")
_KINDS = {
    r"lora_magnitude_vector|dora_scale": "a DoRA",
    r"\.hada_": "a LoHa of LyCORIS",
    r"\.lokr_": "a LoKr of LyCORIS",
    r"\.(oft_\w+|lora_mid\.weight|diff|diff_b|[wb]_norm|[ab][12]\.weight|on_input)$": "a LyCORIS other than a plain LoRA",
    r"^(ip_adapter|image_proj)\.": "an IP-Adapter",
    r"controlnet|control_model": "a ControlNet",
    r"^(emb_params|string_to_param|clip_[lg])": "a textual inversion",
}
"""What files are that hold a tensor of such a name."""
_MADE_FOR = {
    ("lora_te2_", "text_encoder_2", "_blocks_4_1_", "_blocks_5_1_", "_blocks_7_1_", "_blocks_8_1_", "middle_block_1_"): "SDXL",
    ("double_blocks", "single_transformer_blocks", "single_blocks"): "FLUX",
    ("joint_blocks", "add_q_proj", "context_block"): "a network of the kind of Stable Diffusion 3",
    ("conv_inverted",): "SANA",
    ("adaln_single", "caption_projection"): "PixArt",
    ("down_blocks", "mid_block", "up_blocks"): "a UNet of Stable Diffusion",
    ("text_model", "lora_te_", "lora_te1_", "text_encoder"): "a text encoder",
}
"""What networks have layers whose names have one of these parts, the surest signs first."""


@dataclass(frozen=True, slots=True)
class BoundLora:
    """A LoRA whose tensors have found their layers."""

    settings: LoraSettings
    number: int
    """Its place in `model.loras`."""
    factors: dict[str, dict[str, Factors]]
    """By component of the pipeline, and by layer."""


def bind(
    file: LoraFile, setting: str, kind: str, network: str, bare: Callable[[str], nn.Module | None]
) -> dict[str, dict[str, Factors]]:
    """Return the factors of a LoRA by component and layer, all of them.

    Args:
        setting: how the user named the file, for messages.
        kind: the pipeline's class.
        network: the pipeline's attribute that is trained.
        bare: returns a component without storage for its weights, by its attribute; None where the pipeline has none.

    Raises:
        WeightsError: if the file is no LoRA, a tensor has no layer here or does not fit it, or one lacks its partner.
    """
    _refuse_other_kinds(file.tensors, setting)
    wanted = [network]
    if any(part in key for key in file.tensors for part in _TEXT):
        wanted += ["text_encoder", "text_encoder_2"]
    networks = {name: module for name in wanted if (module := bare(name)) is not None}
    known = known_names(kind, networks)
    found: dict[Place, dict[str, tuple[str, Tensor]]] = {}
    left = []
    for name, tensor in file.tensors.items():
        key = read_key(name)
        place = known.get(key.stem) if key else None
        if key is None or place is None:
            left.append(name)
            continue
        given = found.setdefault(place, {})
        if key.role in given:
            raise WeightsError(
                f"{setting} holds two LoRAs in one: {given[key.role][0]} and {name} are for one layer; save one of them alone."
            )
        given[key.role] = (name, tensor)
    if left:
        raise WeightsError(_what_is_left(left, len(file.tensors), setting, kind))
    layers = {name: adaptable_layers(module) for name, module in networks.items()}
    factors: dict[str, dict[str, Factors]] = {}
    for place, given in found.items():
        own = factors.setdefault(place.component, {})
        if taken := own.keys() & set(place.layers):
            raise WeightsError(f"{setting} holds two LoRAs in one: {min(taken)} is in it twice; save one of them alone.")
        weights = [layers[place.component][name].weight for name in place.layers]
        own.update(zip(place.layers, _factors(file, setting, kind, place, given, weights), strict=True))
    if not any(_changes(part) for own in factors.values() for part in own.values()):
        logger.warning("%s changes nothing: all of its factors are zero, as those of a LoRA that was never trained.", setting)
    return factors


def apply_loras(pipeline: Any, loras: Iterable[BoundLora]) -> None:
    """Add LoRAs to a pipeline: fused ones to its weights, the others beside them as adapters of their own.

    Raises:
        WeightsError: if diffusers does not take one that is to stay beside the weights.
    """
    scales: dict[str, float] = {}
    for lora in loras:
        if lora.settings.fuse:
            for component, own in lora.factors.items():
                add_lora(getattr(pipeline, component), _scaled(own, lora.settings.scale))
            continue
        adapter = f"{BASE_ADAPTER}_{lora.number}"
        _load_beside(pipeline, lora, adapter)
        scales[adapter] = lora.settings.scale
    if scales:
        pipeline.set_adapters(list(scales), list(scales.values()))


def _refuse_other_kinds(keys: Iterable[str], setting: str) -> None:
    for pattern, kind in _KINDS.items():
        if key := next((key for key in keys if re.search(pattern, key)), None):
            raise WeightsError(
                f"{setting} is {kind} (it holds {key}), which rlcm cannot add to a model; give a plain LoRA, or merge it into the "
                "model beforehand and set model.path to the merged one."
            )
    said = [read_key(name) for name in keys]
    if not any(one is not None and one.role != "alpha" for one in said):
        names = sorted(keys)
        whole = any(name.endswith((".weight", ".bias")) for name in names)
        raise WeightsError(
            f"{setting} is no LoRA: it holds {listed(names)}"
            + (", as the weights of a whole model do; those go into model.path, as the folder of a pipeline." if whole else ".")
            + " Give the file of a LoRA, or take it out of model.loras."
        )


def _what_is_left(left: list[str], count: int, setting: str, kind: str) -> str:
    made_for = next((what for parts, what in _MADE_FOR.items() if any(part in key for key in left for part in parts)), None)
    return (
        f"{setting} does not fit {kind}: {len(left)} of its {count} tensors have no layer in this model: {listed(sorted(left))}. "
        + (f"Their names are those of {made_for}. " if made_for else "")
        + "Give a LoRA that was made for this model, or take it out of model.loras."
    )


def _factors(
    file: LoraFile, setting: str, kind: str, place: Place, given: Mapping[str, tuple[str, Tensor]], weights: list[Any]
) -> list[Factors]:
    """Return the factors of each layer of a place."""
    name = next(iter(given.values()))[0]
    if not {"down", "up"} <= given.keys():
        raise WeightsError(f"{setting}: {name} lacks its other factor, so the file is not whole; copy or save the LoRA again.")
    require_floats((given["down"], given["up"]), setting)
    down, up = given["down"][1].float(), given["up"][1].float()
    inputs, rows = weights[0].shape[1:], [len(weight) for weight in weights]
    rank = len(down) if down.dim() else 0
    fits = rank and down.numel() == rank * math.prod(inputs) and up.dim() and len(up) == sum(rows)
    if not fits or up.numel() != rank * len(up):
        raise WeightsError(
            f"{setting} does not fit {kind}: its factors {tuple(down.shape)} and {tuple(up.shape)} of {name} are not those of a "
            f"layer [{sum(rows)}, {', '.join(map(str, inputs))}]. Give a LoRA that was made for this model."
        )
    alpha = file.strength(place.component).alpha_of(place.layers[0], rank)
    if "alpha" in given:
        if given["alpha"][1].numel() != 1:
            raise WeightsError(f"{setting}: {given['alpha'][0]} is no single number; save the LoRA again.")
        alpha = float(given["alpha"][1])
    ones = (1,) * (len(inputs) - 1)
    return [Factors(down.reshape(rank, *inputs), part.reshape(len(part), rank, *ones), alpha) for part in up.split(rows)]


def _changes(factors: Factors) -> bool:
    return bool(factors.alpha and factors.down.any() and factors.up.any())


def _scaled(lora: Mapping[str, Factors], scale: float) -> dict[str, Factors]:
    return {layer: Factors(part.down, part.up, part.alpha * scale) for layer, part in lora.items()}


def _load_beside(pipeline: Any, lora: BoundLora, adapter: str) -> None:
    """Load a LoRA as an adapter of the pipeline's networks, and see that it is there."""
    state: dict[str, Tensor] = {}
    for component, own in lora.factors.items():
        for layer, part in own.items():
            state[f"{component}.{layer}.lora_A.weight"] = part.down
            state[f"{component}.{layer}.lora_B.weight"] = part.up * (part.alpha / len(part.down))
    pipeline.load_lora_weights(state, adapter_name=adapter)
    for component, own in lora.factors.items():
        network = getattr(pipeline, component)
        for layer in own:
            tuned: Any = network.get_submodule(layer)
            for letter in "AB":
                held = getattr(tuned, f"lora_{letter}", {})
                wanted = state[f"{component}.{layer}.lora_{letter}.weight"]
                if adapter not in held or not torch.equal(held[adapter].weight.cpu(), wanted.to(held[adapter].weight.dtype)):
                    raise WeightsError(
                        f"model.loras.{lora.number}.path={lora.settings.path!r}: diffusers puts no adapter beside {component}.{layer}; "
                        "set fuse: true for this LoRA, which adds it to the weights."
                    )
