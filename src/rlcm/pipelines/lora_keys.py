"""What other tools call the layers of a network: a LoRA's factors under the names of kohya's scripts, A1111 and ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rlcm.policy.adapter import Factors, Lora

_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AROUND = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_FLUX: dict[str, dict[str, str]] = {
    "transformer_blocks": {
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
    },
    "single_transformer_blocks": {"proj_out": "linear2", "norm.linear": "modulation.lin"},
}
_FLUX_FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "transformer_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_transformer_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}
_FLUX_PLACES = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
_MLP_RATIO = 4


def kohya_unet(lora: Lora) -> dict[str, Factors]:
    """Return a LoRA of Stable Diffusion 1 or 2 under kohya's names, which are diffusers' own with underscores."""
    return {underscored(name): factors for name, factors in lora.items()}


def kohya_sdxl(lora: Lora, layers_per_block: int, up_block_types: Sequence[str]) -> dict[str, Factors]:
    """Return a LoRA of SDXL under kohya's names, which are those of the UNet's first implementation.

    Args:
        lora: by diffusers' names.
        layers_per_block, up_block_types: of the UNet's configuration.

    Raises:
        ValueError: if that implementation has no such layer.
    """
    return {underscored(sgm_name(name, layers_per_block, up_block_types)): factors for name, factors in lora.items()}


def kohya_flux(lora: Lora, hidden: int) -> dict[str, Factors]:
    """Return a LoRA of FLUX.1 under kohya's names, whose network computes queries, keys and values by one layer.

    Factors of layers that are one there are laid side by side, rank r each and rank n r together; their up matrices become
    the blocks of a block-diagonal one, and n alpha stands in for alpha, so that the scale stays alpha / r.

    Args:
        lora: by diffusers' names.
        hidden: width of the network.

    Raises:
        ValueError: if a layer is outside the blocks, or kohya's network has none of that name.
    """
    found: dict[str, Factors] = {}
    for name in lora:
        kind, number, layer = _flux_parts(name)
        place = f"{_FLUX_PLACES[kind]}.{number}."
        if layer in _FLUX[kind]:
            found[underscored(place + _FLUX[kind][layer])] = lora[name]
            continue
        whole, layers = next((w, parts) for w, parts in _FLUX_FUSED[kind].items() if layer in parts)
        if (target := underscored(place + whole)) not in found:
            rows = [hidden * (_MLP_RATIO if part == "proj_mlp" else 1) for part in layers]
            found[target] = _side_by_side([lora.get(f"{kind}.{number}.{part}") for part in layers], rows)
    return found


def tensors_of(lora: Lora, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a LoRA as the tensors of a file: `lora_down`, `lora_up` in `dtype`, and `alpha` in fp32."""
    tensors: dict[str, Tensor] = {}
    for name, factors in lora.items():
        tensors[f"{name}.lora_down.weight"] = factors.down.to(dtype).contiguous()
        tensors[f"{name}.lora_up.weight"] = factors.up.to(dtype).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(factors.alpha)
    return tensors


def underscored(name: str) -> str:
    """Return a layer's name as kohya's scripts write it."""
    return "lora_unet_" + name.replace(".", "_")


def sgm_name(name: str, layers_per_block: int, up_block_types: Sequence[str]) -> str:
    """Return what the first implementation of SDXL's UNet calls a layer.

    Raises:
        ValueError: if it has no such layer.
    """
    if name in _AROUND:
        return _AROUND[name]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, number, rest = match[1], int(match[2]), match[3]
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * number}.{_RESNET[rest]}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if match is None:
        raise ValueError(f"{name} has no counterpart.")
    side, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    each = layers_per_block + 1  # a block of n layers and its resampling; upwards, of n + 1 layers
    if kind == "downsamplers":
        return f"input_blocks.{each * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{each * (block + 1) - 1}.{2 if 'Attn' in up_block_types[block] else 1}.{rest}"
    place = f"input_blocks.{1 + each * block + number}" if side == "down" else f"output_blocks.{each * block + number}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_RESNET[rest]}"


def flux_layers(blocks: Mapping[str, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the layers of FLUX.1's first implementation, and those of diffusers whose outputs each has, in order.

    Args:
        blocks: how many blocks the network has of each kind, by diffusers' names.
    """
    for kind, place in _FLUX_PLACES.items():
        for number in range(blocks[kind]):
            ours, theirs = f"{kind}.{number}.", f"{place}.{number}."
            for layer, name in _FLUX[kind].items():
                yield theirs + name, (ours + layer,)
            for name, layers in _FLUX_FUSED[kind].items():
                yield theirs + name, tuple(ours + layer for layer in layers)


def _flux_parts(name: str) -> tuple[str, str, str]:
    """Return the kind of block, its number and the layer's name inside it."""
    match = re.fullmatch(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)", name)
    if match is not None:
        known = {*_FLUX[match[1]], *(part for parts in _FLUX_FUSED[match[1]].values() for part in parts)}
        if match[3] in known:
            return match[1], match[2], match[3]
    raise ValueError(f"{name} has no counterpart.")


def _side_by_side(parts: Sequence[Factors | None], rows: Sequence[int]) -> Factors:
    """Return the factors of one layer whose outputs are those of several, some of which have no LoRA.

    Args:
        parts: in the order of the outputs.
        rows: outputs of each.
    """
    present = [part for part in parts if part is not None]
    blocks = [torch.zeros(size, 0) if part is None else part.up for part, size in zip(parts, rows, strict=True)]
    return Factors(torch.cat([part.down for part in present]), torch.block_diag(*blocks), sum(part.alpha for part in present))
