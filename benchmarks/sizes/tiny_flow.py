"""The flow-matching models in a few kilobytes: of their classes, with as many parts, which the tests' own models are made of, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
from transformers import (
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5EncoderModel,
)

from benchmarks.sizes.shapes import flow_matching
from benchmarks.sizes.tiny_parts import WIDTH, clip, t5, vae

AXES = (4, 6, 6)
"""Of the positions of a head of 16."""


def z_image(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like Z-Image-Turbo."""
    return diffusers.ZImagePipeline(
        scheduler=flow_matching(3.0),
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=z_image_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=z_image_network(),
    )


def klein(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like FLUX.2 klein, which reads up to the 27th layer of its encoder."""
    return diffusers.Flux2KleinPipeline(
        scheduler=flow_matching(3.0),
        vae=statistics_vae(),
        text_encoder=klein_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=klein_network(),
        is_distilled=True,
    )


def sd3(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like Stable Diffusion 3, whose third encoder is as wide as the other two."""
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        ),
        scheduler=flow_matching(3.0),
        vae=vae(shift_factor=0.0609, scaling_factor=1.5305),
        text_encoder=CLIPTextModelWithProjection(clip(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip(tokenizer)),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5(tokenizer, 2 * WIDTH)),
        tokenizer_3=tokenizer,
    )


def qwen_image(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like Qwen-Image."""
    return diffusers.QwenImagePipeline(
        scheduler=flow_matching(3.0),
        vae=film_vae(),
        text_encoder=qwen_image_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=qwen_image_network(),
    )


def krea(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like Krea-2-Turbo, told of prompts by four layers of their encoder."""
    return diffusers.Krea2Pipeline(
        scheduler=flow_matching(3.0),
        vae=film_vae(),
        text_encoder=krea_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=krea_network(),
        text_encoder_select_layers=(0, 1, 2, 3),
        is_distilled=True,
    )


def ernie(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like ERNIE-Image-Turbo."""
    return diffusers.ErnieImagePipeline(
        scheduler=flow_matching(3.0),
        vae=statistics_vae(),
        text_encoder=ernie_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=ernie_network(),
    )


def z_image_network(layers: int = 1) -> Any:
    """Return the network of Z-Image."""
    return diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[*AXES],
    )


def klein_network() -> Any:
    """Return the network of FLUX.2 klein."""
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )


def qwen_image_network() -> Any:
    """Return the network of Qwen-Image."""
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=AXES,
    )


def krea_network() -> Any:
    """Return the network of Krea 2."""
    return diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=4,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=AXES,
    )


def ernie_network() -> Any:
    """Return the network of ERNIE-Image."""
    return diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=AXES,
    )


def z_image_encoder(vocabulary: int) -> Any:
    """Return the text encoder of Z-Image."""
    return Qwen3Model(Qwen3Config(**_language_model(vocabulary, 3)))


def klein_encoder(vocabulary: int) -> Any:
    """Return the text encoder of FLUX.2 klein, with the 27 layers that are read."""
    return Qwen3ForCausalLM(Qwen3Config(**_language_model(vocabulary, 28)))


def qwen_image_encoder(vocabulary: int) -> Any:
    """Return the text encoder of Qwen-Image."""
    text = {**_language_model(vocabulary, 2), **_rope_of_three(type="default"), "rope_theta": 1_000_000.0}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=_vision()))


def krea_encoder(vocabulary: int) -> Any:
    """Return the text encoder of Krea 2."""
    text = {**_language_model(vocabulary, 3), **_rope_of_three()}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=_vision(deepstack_visual_indexes=[0])))


def ernie_encoder(vocabulary: int) -> Any:
    """Return the text encoder of ERNIE-Image."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
    return Mistral3Model(Mistral3Config(text_config=_language_model(vocabulary, 2), vision_config=vision))


def statistics_vae() -> Any:
    """Return the autoencoder of FLUX.2 and ERNIE-Image, which normalises its latents by statistics of its own."""
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )


def film_vae(mean: Sequence[float] = (0.0,) * 4, std: Sequence[float] = (1.0,) * 4) -> Any:
    """Return the autoencoder of Qwen-Image and Krea 2, which halves the image's size."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[*mean],
        latents_std=[*std],
    )


def _language_model(vocabulary: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }


def _rope_of_three(**more: str) -> dict[str, Any]:
    return {"rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", **more}}


def _vision(**more: Any) -> dict[str, Any]:
    return {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH, **more}
