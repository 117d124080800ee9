"""Tiny random pipelines of the flow-matching models, in fp32, and plain Euler steps to hold against their own sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from tiny_pipelines import clip_text, clip_tokenizer, quiet, small_vae, word_tokenizer
from transformers import (
    Mistral3Config,
    Mistral3Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

from rlcm.pipelines import PipelineDenoiser
from rlcm.types import Conditioning

PROMPTS = ["a red cat", "two blue dogs on a hill", "x"]
"""Of unequal length: 7, 18 and 1 letters."""
SEQUENCE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def stochastic(**changes: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    """Return the scheduler of all of these models, which draws noise."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"stochastic_sampling": True, **changes})


def chat_tokenizer(length: int = 512) -> Any:
    """Return a tokenizer with a token for each letter that can write a prompt as a message to an assistant."""
    tokenizer = word_tokenizer(length)
    tokenizer.chat_template = "{% for message in messages %}u {{ message['content'] }} a{% endfor %}"
    return tokenizer


def z_image(scheduler: Any) -> diffusers.ZImagePipeline:
    """Return a Z-Image pipeline on latents of 4 channels."""
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 6, 6]
    )
    return quiet(
        diffusers.ZImagePipeline(
            scheduler=scheduler,
            vae=small_vae(shift_factor=0.1159, scaling_factor=0.3611),
            text_encoder=Qwen3Model(Qwen3Config(num_hidden_layers=3, **SEQUENCE)),
            tokenizer=chat_tokenizer(),
            transformer=transformer,
        )
    )


def klein(scheduler: Any, *, is_distilled: bool = True) -> diffusers.Flux2KleinPipeline:
    """Return a FLUX.2 klein pipeline on packed latents of 4 channels; its encoder has the 27 layers that are read."""
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return quiet(
        diffusers.Flux2KleinPipeline(
            scheduler=scheduler,
            vae=statistics_vae(),
            text_encoder=Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=28, **SEQUENCE)),
            tokenizer=chat_tokenizer(),
            transformer=transformer,
            is_distilled=is_distilled,
        )
    )


def statistics_vae() -> diffusers.AutoencoderKLFlux2:
    """Return the VAE of FLUX.2 and ERNIE, with statistics that change something."""
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def sd3(scheduler: Any) -> diffusers.StableDiffusion3Pipeline:
    """Return a Stable Diffusion 3 pipeline; its pooled embedding has 16 entries."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=12,
        qk_norm="rms_norm",
    )
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=scheduler,
            vae=small_vae(shift_factor=0.0609, scaling_factor=1.5305),
            text_encoder=clip_text(16, projection=8),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_text(16, projection=8),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
            tokenizer_3=word_tokenizer(256),
        )
    )


def film_vae() -> diffusers.AutoencoderKLQwenImage:
    """Return the VAE of Qwen-Image and Krea 2, which halves the image's size."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.5, 0.7, 1.2, 2.0],
    )


def qwen_image(scheduler: Any) -> diffusers.QwenImagePipeline:
    """Return a Qwen-Image pipeline on packed latents of 4 channels."""
    torch.manual_seed(0)
    rope = {"type": "default", "mrope_section": [1, 1, 2], "rope_type": "default"}
    text = {**SEQUENCE, "num_hidden_layers": 2, "rope_scaling": rope, "rope_theta": 1000000.0}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return quiet(
        diffusers.QwenImagePipeline(
            scheduler=scheduler,
            vae=film_vae(),
            text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
            tokenizer=chat_tokenizer(2048),
            transformer=transformer,
        )
    )


def krea(scheduler: Any, *, is_distilled: bool = True) -> diffusers.Krea2Pipeline:
    """Return a Krea 2 pipeline on packed latents of 4 channels, told of prompts by four layers."""
    torch.manual_seed(0)
    text = {**SEQUENCE, "num_hidden_layers": 3, "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=4,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return quiet(
        diffusers.Krea2Pipeline(
            scheduler=scheduler,
            vae=film_vae(),
            text_encoder=Qwen3VLModel(
                Qwen3VLConfig(text_config=text, vision_config={**vision, "deepstack_visual_indexes": [0]})
            ),
            tokenizer=chat_tokenizer(1024),
            transformer=transformer,
            text_encoder_select_layers=(0, 1, 2, 3),
            is_distilled=is_distilled,
        )
    )


def ernie(scheduler: Any) -> diffusers.ErnieImagePipeline:
    """Return an ERNIE-Image pipeline on latents of 4 channels, patched to 16, without the model that rewrites prompts."""
    torch.manual_seed(0)
    text = {**SEQUENCE, "num_hidden_layers": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    return quiet(
        diffusers.ErnieImagePipeline(
            transformer=transformer,
            vae=statistics_vae(),
            text_encoder=Mistral3Model(Mistral3Config(text_config=text, vision_config=vision)),
            tokenizer=word_tokenizer(512),
            scheduler=scheduler,
        )
    )


@torch.no_grad()
def euler(denoiser: PipelineDenoiser, conditioning: Conditioning, noise: torch.Tensor) -> torch.Tensor:
    """Return images [B, 3, h, w] in [0, 1] by plain Euler steps of the velocity, over the noise levels of the table.

    x' = x + (s' - s) v
    """
    levels = [*(-denoiser.table.am).tolist(), 0.0]
    x = denoiser.scale_noise(noise)
    for index in range(len(denoiser.table)):
        step = torch.full((len(x),), index)
        x = x + (levels[index + 1] - levels[index]) * denoiser.denoise(x, step, conditioning)
    return denoiser.decode(x).clamp(0, 1)


@torch.no_grad()
def own_images(pipeline: Any, prompts: Sequence[str], noise: torch.Tensor, **call: Any) -> torch.Tensor:
    """Return the images that the pipeline makes itself, without noise between the steps."""
    kept = pipeline.scheduler
    pipeline.scheduler = type(kept).from_config(kept.config, stochastic_sampling=False)
    images: torch.Tensor = pipeline(prompt=list(prompts), latents=noise.clone(), output_type="pt", **call).images
    pipeline.scheduler = kept
    return images
