"""From open_clip's tensors to those of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from rlcm.errors import RewardError


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an open_clip vision transformer CLIP under the names of transformers' `CLIPModel`.

    open_clip joins the projections of query, key and value in one matrix [3 D, D], and multiplies by its projections from the
    right, so these are transposed.
    """
    plain = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    inner = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        stem, _, kind = name.rpartition(".")
        if name in plain:
            found[plain[name]] = value
        elif stem in norms:
            found[f"{norms[stem]}.{kind}"] = value
        elif name == "visual.proj":
            found["visual_projection.weight"] = value.T.contiguous()
        elif name == "text_projection":
            found["text_projection.weight"] = value.T.contiguous()
        elif block and (block[3] in inner or block[3] == "attn.in_proj"):
            layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"
            if block[3] == "attn.in_proj":
                for part, projection in zip(value.chunk(3), ("q_proj", "k_proj", "v_proj"), strict=True):
                    found[f"{layer}.self_attn.{projection}.{block[4]}"] = part.contiguous()
            else:
                found[f"{layer}.{inner[block[3]]}.{block[4]}"] = value
        elif name not in ("attn_mask", "text.attn_mask"):
            found[name] = value  # unknown: `fill` names it
    return found


def fill(model: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """Load tensors into a model, all of them and nothing else.

    Raises:
        RewardError: if names or shapes differ.
    """
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise RewardError(f"{place} does not fit the configuration: {error}") from error
    missing = [name for name in found.missing_keys if not name.endswith("position_ids")]
    if missing or found.unexpected_keys:
        raise RewardError(f"{place} lacks {missing[:3]} and has unknown {found.unexpected_keys[:3]}.")
