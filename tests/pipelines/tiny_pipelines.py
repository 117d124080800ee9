"""Tiny random pipelines of every family, in fp32, and a rollout through `transition` to hold against their own sampling."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from rlcm.pipelines import PipelineDenoiser
from rlcm.policy.transitions import transition
from rlcm.types import Conditioning

PROMPTS = ["a red cat", "two blue dogs on a hill"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def clip_tokenizer(length: int = 16) -> CLIPTokenizer:
    """Return a CLIP tokenizer with a token for each letter."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
        return CLIPTokenizer.from_pretrained(folder)


def word_tokenizer(length: int = 64) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each letter, `</s>` at the end and padding, as T5's and Gemma's."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def clip_text(width: int = 16, projection: int | None = None, length: int = 16) -> Any:
    """Return a CLIP text encoder, with a projection of its pooled output where its size is given."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        vocab_size=len(LETTERS) * 2 + 2,
        bos_token_id=len(LETTERS) * 2,
        eos_token_id=len(LETTERS) * 2 + 1,
        pad_token_id=len(LETTERS) * 2 + 1,
        projection_dim=projection or width,
    )
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


def t5_text() -> T5EncoderModel:
    """Return a T5 encoder of width 16."""
    return T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def small_vae(channels: int = 4, **config: Any) -> diffusers.AutoencoderKL:
    """Return a VAE that halves the image's size."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **config,
    )


def small_unet(width: int = 16, **config: Any) -> diffusers.UNet2DConditionModel:
    """Return a text-conditioned UNet on 8x8 latents."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    )


def schedule(**changes: Any) -> dict[str, Any]:
    """Return the configuration of Stable Diffusion's noise schedule."""
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **changes}


def quiet(pipeline: Any) -> Any:
    """Return the pipeline without progress bar, in eval mode, with weights of some size everywhere."""
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            for parameter in component.parameters():
                if not parameter.any():  # some layers start at zero, which would hide what they are told
                    parameter.normal_(std=0.1)
    return pipeline


def stable_diffusion(scheduler: Any, kind: Any = diffusers.StableDiffusionPipeline, **unet: Any) -> Any:
    """Return a StableDiffusionPipeline or LatentConsistencyModelPipeline."""
    torch.manual_seed(0)
    return quiet(
        kind(
            vae=small_vae(),
            text_encoder=clip_text(),
            tokenizer=clip_tokenizer(),
            unet=small_unet(**unet),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sdxl(scheduler: Any, *, vae: dict[str, Any] | None = None, **unet: Any) -> Any:
    """Return a StableDiffusionXLPipeline; its pooled embedding has 24 entries, its size embedding 6 x 8."""
    torch.manual_seed(0)
    size = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 72}
    return quiet(
        diffusers.StableDiffusionXLPipeline(
            vae=small_vae(**(vae or {})),
            text_encoder=clip_text(),
            text_encoder_2=clip_text(16, projection=24),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            unet=small_unet(32, **size, **unet),
            scheduler=scheduler,
            add_watermarker=False,
        )
    )


def pixel(classes: int | None = 10) -> diffusers.ConsistencyModelPipeline:
    """Return a consistency model on 8x8 pixels."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=classes,
    )
    return quiet(diffusers.ConsistencyModelPipeline(unet, diffusers.CMStochasticIterativeScheduler()))


def sana() -> diffusers.SanaSprintPipeline:
    """Return a SANA-Sprint pipeline that makes 32x32 images from 8x8 latents."""
    torch.manual_seed(0)
    text = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.41,
    )
    return quiet(
        diffusers.SanaSprintPipeline(
            tokenizer=word_tokenizer(),
            text_encoder=Gemma2Model(text),
            vae=vae,
            transformer=transformer,
            scheduler=diffusers.SCMScheduler(),
        )
    )


def flux(scheduler: Any, *, guidance_embeds: bool = True) -> diffusers.FluxPipeline:
    """Return a FLUX pipeline on packed latents of 4 channels."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return quiet(
        diffusers.FluxPipeline(
            scheduler=scheduler,
            vae=small_vae(shift_factor=0.1159, scaling_factor=0.3611),
            text_encoder=clip_text(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5_text(),
            tokenizer_2=word_tokenizer(),
            transformer=transformer,
        )
    )


def pixart(scheduler: Any, kind: Any = diffusers.PixArtAlphaPipeline, *, sample_size: int = 8) -> Any:
    """Return a PixArt pipeline; with sample_size=128 the alpha pipeline also conditions on the image's size."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        norm_num_groups=1,
        cross_attention_dim=24,
        sample_size=sample_size,
        patch_size=2,
        caption_channels=16,
        use_additional_conditions=sample_size == 128,
    )
    return quiet(
        kind(tokenizer=word_tokenizer(), text_encoder=t5_text(), vae=small_vae(), transformer=transformer, scheduler=scheduler)
    )


def draw(shape: Sequence[int], generators: Sequence[torch.Generator] | None) -> torch.Tensor:
    """Return noise as diffusers draws it: an image at a time from its generator, or from the global one."""
    if generators is None:
        return torch.randn(tuple(shape))
    return torch.cat([torch.randn((1, *shape[1:]), generator=generator) for generator in generators])


def generators(count: int) -> list[torch.Generator]:
    """Return one seeded generator an image."""
    return [torch.Generator().manual_seed(100 + index) for index in range(count)]


@torch.no_grad()
def rollout(denoiser: PipelineDenoiser, conditioning: Conditioning, rngs: Sequence[torch.Generator] | None) -> torch.Tensor:
    """Return images [B, 3, h, w] in [0, 1], sampled through the table: first latents, then a draw a noisy step."""
    size = len(conditioning)
    x = denoiser.scale_noise(draw((size, *denoiser.latent_shape), rngs))
    for index in range(len(denoiser.table.std)):
        step = torch.full((size,), index)
        _, mean, std = transition(denoiser.table, x, denoiser.denoise(x, step, conditioning), step)
        x = mean if float(denoiser.table.std[index]) == 0 else mean + std.view(-1, *(1,) * (x.dim() - 1)) * draw(x.shape, rngs)
    return denoiser.decode(x).clamp(0, 1)


def distance(images: torch.Tensor, others: torch.Tensor) -> float:
    """Return the largest absolute difference of a pixel."""
    assert images.shape == others.shape
    return float((images - others).abs().max())
