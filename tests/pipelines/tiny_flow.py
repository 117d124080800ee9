"""Tiny random pipelines of the flow-matching models, in fp32, and plain Euler steps to hold against their own sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from tiny_pipelines import clip_text, clip_tokenizer, quiet, small_vae, word_tokenizer
from transformers import T5Config, T5EncoderModel

from benchmarks.sizes import tiny_flow as parts
from rlcm.pipelines import PipelineDenoiser
from rlcm.types import Conditioning

PROMPTS = ["a red cat", "two blue dogs on a hill", "x"]
"""Of unequal length: 7, 18 and 1 letters."""
VOCABULARY = 64


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
    transformer = parts.z_image_network(layers=2)
    return quiet(
        diffusers.ZImagePipeline(
            scheduler=scheduler,
            vae=small_vae(shift_factor=0.1159, scaling_factor=0.3611),
            text_encoder=parts.z_image_encoder(VOCABULARY),
            tokenizer=chat_tokenizer(),
            transformer=transformer,
        )
    )


def klein(scheduler: Any, *, is_distilled: bool = True) -> diffusers.Flux2KleinPipeline:
    """Return a FLUX.2 klein pipeline on packed latents of 4 channels; its encoder has the 27 layers that are read."""
    torch.manual_seed(0)
    transformer = parts.klein_network()
    return quiet(
        diffusers.Flux2KleinPipeline(
            scheduler=scheduler,
            vae=statistics_vae(),
            text_encoder=parts.klein_encoder(VOCABULARY),
            tokenizer=chat_tokenizer(),
            transformer=transformer,
            is_distilled=is_distilled,
        )
    )


def statistics_vae() -> diffusers.AutoencoderKLFlux2:
    """Return the VAE of FLUX.2 and ERNIE, with statistics that change something."""
    vae = parts.statistics_vae()
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
            text_encoder_3=T5EncoderModel(
                T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
            ),
            tokenizer_3=word_tokenizer(256),
        )
    )


def film_vae() -> diffusers.AutoencoderKLQwenImage:
    """Return the VAE of Qwen-Image and Krea 2, with statistics that change something."""
    return parts.film_vae((0.1, -0.2, 0.3, -0.4), (1.5, 0.7, 1.2, 2.0))


def qwen_image(scheduler: Any) -> diffusers.QwenImagePipeline:
    """Return a Qwen-Image pipeline on packed latents of 4 channels."""
    torch.manual_seed(0)
    transformer = parts.qwen_image_network()
    return quiet(
        diffusers.QwenImagePipeline(
            scheduler=scheduler,
            vae=film_vae(),
            text_encoder=parts.qwen_image_encoder(VOCABULARY),
            tokenizer=chat_tokenizer(2048),
            transformer=transformer,
        )
    )


def krea(scheduler: Any, *, is_distilled: bool = True) -> diffusers.Krea2Pipeline:
    """Return a Krea 2 pipeline on packed latents of 4 channels, told of prompts by four layers."""
    torch.manual_seed(0)
    transformer = parts.krea_network()
    return quiet(
        diffusers.Krea2Pipeline(
            scheduler=scheduler,
            vae=film_vae(),
            text_encoder=parts.krea_encoder(VOCABULARY),
            tokenizer=chat_tokenizer(1024),
            transformer=transformer,
            text_encoder_select_layers=(0, 1, 2, 3),
            is_distilled=is_distilled,
        )
    )


def ernie(scheduler: Any) -> diffusers.ErnieImagePipeline:
    """Return an ERNIE-Image pipeline on latents of 4 channels, patched to 16, without the model that rewrites prompts."""
    torch.manual_seed(0)
    transformer = parts.ernie_network()
    return quiet(
        diffusers.ErnieImagePipeline(
            transformer=transformer,
            vae=statistics_vae(),
            text_encoder=parts.ernie_encoder(VOCABULARY),
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
