"""Which layer the name of a LoRA's tensor means, in the spellings that are met: diffusers' new and old, PEFT's, kohya's, ComfyUI's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from torch import nn

from rlcm.pipelines.lora_keys import flux_layers, sgm_name
from rlcm.policy.policy import adaptable_layers

Role = Literal["down", "up", "alpha"]

_PEFT = "base_model.model."
_KEY = re.compile(
    r"(?P<stem>.+?)(?:\.lora_(?P<letter>[AB])(?:\.(?P<adapter>[^.]+))?|[._]lora(?:_linear_layer)?[._](?P<word>down|up))\.weight"
)
_ALPHA = re.compile(r"(?P<stem>.+)\.alpha")
_KOHYA_TEXT = {("text_encoder", False): ("lora_te_",), ("text_encoder", True): ("lora_te1_",), ("text_encoder_2", True): (
    "lora_te2_", "lora_te3_",
)}  # fmt: skip
"""How kohya's scripts begin the names of a text encoder's layers, by whether there are two; FLUX's second one is their third."""
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_OLD_ATTENTION = re.compile(r"(.+)\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)")


class Place(NamedTuple):
    """Where the factors of a name go."""

    component: str
    """The pipeline's attribute."""
    layers: tuple[str, ...]
    """The layers whose outputs lie side by side in it; one, but where another implementation computes several by one."""


class Key(NamedTuple):
    """What the name of a tensor says."""

    stem: str
    """Of the layer."""
    role: Role


def read_key(key: str) -> Key | None:
    """Return what a tensor's name says, None where it is not one of a LoRA's factors or alphas."""
    if match := _KEY.fullmatch(key):
        return Key(_without_peft(match["stem"]), "down" if match["letter"] == "A" or match["word"] == "down" else "up")
    if match := _ALPHA.fullmatch(key):
        return Key(_without_peft(match["stem"]), "alpha")
    return None


def known_names(kind: str, networks: Mapping[str, nn.Module]) -> dict[str, Place]:
    """Return the places that the names of layers mean, in every spelling.

    Args:
        kind: the pipeline's class.
        networks: its networks by attribute, the trained one first; those without storage will do.
    """
    found: dict[str, Place] = {}
    for number, (component, network) in enumerate(networks.items()):
        layers = adaptable_layers(network)
        spell = _network_spellings if number == 0 else _text_spellings
        for layer in layers:
            for name in spell(component, layer, "text_encoder_2" in networks):
                found.setdefault(name, Place(component, (layer,)))
        if number == 0:
            for name, places in _other_implementation(kind, network, layers):
                for spelling in (f"lora_unet_{name.replace('.', '_')}", name, f"diffusion_model.{name}", f"{component}.{name}"):
                    found.setdefault(spelling, Place(component, places))
    return found


def _without_peft(stem: str) -> str:
    return stem.removeprefix(_PEFT).replace(f".{_PEFT}", ".")


def _network_spellings(component: str, layer: str, _: bool) -> Iterator[str]:
    dotted = [layer]
    if old := _OLD_ATTENTION.fullmatch(layer):
        dotted += [f"{old[1]}.{old[2].removesuffix('.0')}", f"{old[1]}.processor.{old[2].removesuffix('.0')}"]
    for name in dotted:
        yield from (name, f"{component}.{name}", f"diffusion_model.{name}")
    yield f"lora_unet_{layer.replace('.', '_')}"
    if component == "transformer":
        yield f"lora_transformer_{layer.replace('.', '_')}"


def _text_spellings(component: str, layer: str, one_of_two: bool) -> Iterator[str]:
    # CLIP's layers are inside `text_model` in some versions of transformers, and in all files.
    plain = layer.removeprefix("text_model.")
    parent, _, last = plain.rpartition(".")
    for name in (plain, f"text_model.{plain}"):
        yield f"{component}.{name}"
        for prefix in _KOHYA_TEXT[component, one_of_two]:
            yield prefix + name.replace(".", "_")
    if last in _OLD_TEXT:
        yield f"{component}.text_model.{parent}.{_OLD_TEXT[last]}"


def _other_implementation(kind: str, network: Any, layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names of the layers in the implementation that a model was first published in, where kohya's files keep them."""
    if kind == "FluxPipeline":
        blocks = {name: len(getattr(network, name)) for name in ("transformer_blocks", "single_transformer_blocks")}
        yield from flux_layers(blocks)
    if kind == "StableDiffusionXLPipeline":
        for layer in layers:
            try:
                yield sgm_name(layer, network.config.layers_per_block, network.config.up_block_types), (layer,)
            except (ValueError, LookupError):
                continue
