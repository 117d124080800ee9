"""The same classes as `shapes.py` in a few kilobytes, with as many parts: whatever is to run on a GPU runs here first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, Gemma2Config, Gemma2Model, T5EncoderModel

from benchmarks.sizes import tiny_flow
from benchmarks.sizes.shapes import BETAS, SD15_DIFFUSION, SHAPES, Shape
from benchmarks.sizes.tiny_parts import WIDTH, clip, t5, vae

FLOW = {
    "z-image": tiny_flow.z_image,
    "klein-4b": tiny_flow.klein,
    "klein-9b": tiny_flow.klein,
    "sd3-medium": tiny_flow.sd3,
    "sd3.5-large": tiny_flow.sd3,
    "qwen-image": tiny_flow.qwen_image,
    "krea-2": tiny_flow.krea,
    "ernie-image": tiny_flow.ernie,
}
"""The flow-matching models, all of which have a size of their own that is not their network's."""
PIXELS = {"flux": 16, **dict.fromkeys(FLOW, 16)}
"""Where a pipeline's own size is not that of its network."""


def sd15(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like Stable Diffusion 1.5 with the guidance input of an LCM."""
    return _stable_diffusion(tokenizer, diffusers.LatentConsistencyModelPipeline, time_cond_proj_dim=8)


def sd15_diffusion(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like Stable Diffusion 1.5."""
    return _stable_diffusion(tokenizer, diffusers.StableDiffusionPipeline)


def sdxl(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like SDXL."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(clip(tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(cross_attention_dim=2 * WIDTH, projection_class_embeddings_input_dim=6 * 8 + WIDTH, **added),
        scheduler=diffusers.LCMScheduler(**BETAS),
        add_watermarker=False,
    )


def sana(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like SANA-Sprint."""
    gemma = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    blocks = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {
            "block_types": "ResBlock",
            "block_out_channels": (8, 8, 16),
            "layers_per_block": (1, 1, 1),
            "qkv_multiscales": ((), (), ()),
        }.items()
    }
    return diffusers.SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(gemma),
        vae=diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **blocks),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
            sample_size=8,
            guidance_embeds=True,
            qk_norm="rms_norm_across_heads",
        ),
        scheduler=diffusers.SCMScheduler(),
    )


def flux(tokenizer: Any, cut: bool = False) -> Any:
    """Return a pipeline like FLUX.1 schnell."""
    return diffusers.FluxPipeline(
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(clip(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5(tokenizer)),
        tokenizer_2=tokenizer,
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    )


def pixel(_: Any, cut: bool = False) -> Any:
    """Return a consistency model on 8x8 pixels."""
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=1000,
    )
    return diffusers.ConsistencyModelPipeline(unet, diffusers.CMStochasticIterativeScheduler())


def _stable_diffusion(tokenizer: Any, kind: Any, **unet: Any) -> Any:
    return kind(
        vae=vae(),
        text_encoder=CLIPTextModel(clip(tokenizer)),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=WIDTH, **unet),
        scheduler=diffusers.LCMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _unet(**config: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    )


@torch.no_grad()
def stir(pipeline: Any) -> Any:
    """Return a pipeline with weights of some size everywhere: layers that begin at zero would hide what they are told."""
    for component in pipeline.components.values():
        for parameter in component.parameters() if isinstance(component, torch.nn.Module) else ():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return pipeline


BUILDERS = {"sd15": sd15, "sdxl": sdxl, "sana-0.6b": sana, "sana-1.6b": sana, "flux": flux, "pixel-64": pixel, **FLOW}


def _as_small(shape: Shape, pipeline: Callable[[Any, bool], Any]) -> Shape:
    sampler = shape.sampler.model_copy(update={"steps": 2})
    return replace(shape, pipeline=pipeline, sampler=sampler, batch=4, micro_batch=3)


TINY = {name: _as_small(SHAPES[name], builder) for name, builder in BUILDERS.items()}
"""By the names of `shapes.py`."""
TINY["sd15-diffusion"] = _as_small(SD15_DIFFUSION, sd15_diffusion)
