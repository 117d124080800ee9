"""Published models as sizes alone: their networks, text encoders and decoders, without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
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

from rlcm.pipelines import SamplerSettings

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@dataclass(frozen=True)
class Shape:
    """A published model's sizes, without its weights."""

    pipeline: Callable[[Any, bool], Any]
    """From a tokenizer to the pipeline; whether large text encoders are cut to two layers."""
    sampler: SamplerSettings
    embeddings: dict[str, tuple[int, ...]]
    """What the text encoders would say about one prompt."""
    batch: int
    """Images sampled at once."""
    micro_batch: int


def sd15(tokenizer: Any, cut: bool = False) -> Any:
    """Return Stable Diffusion 1.5 with the guidance input of an LCM: 512x512."""
    return _stable_diffusion(tokenizer, diffusers.LatentConsistencyModelPipeline, time_cond_proj_dim=256)


def sd15_diffusion(tokenizer: Any, cut: bool = False) -> Any:
    """Return Stable Diffusion 1.5, which is guided by a second call of its network: 512x512."""
    return _stable_diffusion(tokenizer, diffusers.StableDiffusionPipeline)


def _stable_diffusion(tokenizer: Any, kind: Any, **unet: Any) -> Any:
    return kind(
        vae=sd_vae(),
        text_encoder=CLIPTextModel(clip_l()),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
            **unet,
        ),
        scheduler=diffusers.LCMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(tokenizer: Any, cut: bool = False) -> Any:
    """Return SDXL: 1024x1024."""
    return diffusers.StableDiffusionXLPipeline(
        vae=sd_vae(sample_size=1024, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(clip_l()),
        text_encoder_2=CLIPTextModelWithProjection(big_g()),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        scheduler=diffusers.LCMScheduler(**BETAS),
        add_watermarker=False,
    )


def sana_small(tokenizer: Any, cut: bool = False) -> Any:
    """Return SANA-Sprint 0.6B: 1024x1024 on a latent of 32x32."""
    sizes = {"num_attention_heads": 36, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72}
    return sana(tokenizer, cut, num_layers=28, **sizes)


def sana_large(tokenizer: Any, cut: bool = False) -> Any:
    """Return SANA-Sprint 1.6B: 1024x1024 on a latent of 32x32."""
    sizes = {"num_attention_heads": 70, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112}
    return sana(tokenizer, cut, num_layers=20, **sizes)


def sana(tokenizer: Any, cut: bool, **transformer: int) -> Any:
    """Return SANA-Sprint with a transformer of these sizes."""
    gemma = Gemma2Config(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=2 if cut else 26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        vocab_size=256_000,
    )
    return diffusers.SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(gemma),
        vae=diffusers.AutoencoderDC(
            latent_channels=32,
            encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
            decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
            encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
            decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
            encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
            decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            scaling_factor=0.41407,
        ),
        transformer=diffusers.SanaTransformer2DModel(
            attention_head_dim=32,
            cross_attention_dim=transformer["num_attention_heads"] * 32,
            caption_channels=2304,
            guidance_embeds=True,
            qk_norm="rms_norm_across_heads",
            **transformer,
        ),
        scheduler=diffusers.SCMScheduler(),
    )


def flux(tokenizer: Any, cut: bool = False) -> Any:
    """Return FLUX.1 schnell: 1024x1024."""
    return diffusers.FluxPipeline(
        vae=sd_vae(sample_size=1024, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(clip_l()),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5_xxl(cut)),
        tokenizer_2=tokenizer,
        transformer=diffusers.FluxTransformer2DModel(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    )


def z_image(tokenizer: Any, cut: bool = False) -> Any:
    """Return Z-Image-Turbo: 1024x1024."""
    return diffusers.ZImagePipeline(
        scheduler=flow_matching(3.0),
        vae=sd_vae(sample_size=1024, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Qwen3Model(qwen3_4b(cut)),
        tokenizer=tokenizer,
        transformer=diffusers.ZImageTransformer2DModel(),
    )


def klein_small(tokenizer: Any, cut: bool = False) -> Any:
    """Return FLUX.2 klein 4B: 1024x1024."""
    return klein(tokenizer, qwen3_4b(cut), num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680)


def klein_large(tokenizer: Any, cut: bool = False) -> Any:
    """Return FLUX.2 klein 9B: 1024x1024."""
    text = qwen3_4b(cut, hidden_size=4096, intermediate_size=12288)
    return klein(tokenizer, text, num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288)


def klein(tokenizer: Any, text: Qwen3Config, **transformer: int) -> Any:
    """Return FLUX.2 klein with a transformer of these sizes."""
    return diffusers.Flux2KleinPipeline(
        scheduler=flow_matching(3.0),
        vae=diffusers.AutoencoderKLFlux2(),
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer,
        transformer=diffusers.Flux2Transformer2DModel(in_channels=128, guidance_embeds=False, **transformer),
        is_distilled=True,
    )


def sd3_medium(tokenizer: Any, cut: bool = False) -> Any:
    """Return Stable Diffusion 3 medium: 1024x1024."""
    sizes = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
    return sd3(tokenizer, cut, **sizes)


def sd3_large(tokenizer: Any, cut: bool = False) -> Any:
    """Return Stable Diffusion 3.5 large, and its turbo: 1024x1024."""
    sizes = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
    return sd3(tokenizer, cut, qk_norm="rms_norm", **sizes)


def sd3(tokenizer: Any, cut: bool, **transformer: Any) -> Any:
    """Return Stable Diffusion 3 with a transformer of these sizes."""
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            joint_attention_dim=4096, pooled_projection_dim=2048, pos_embed_max_size=192, **transformer
        ),
        scheduler=flow_matching(3.0),
        vae=sd_vae(sample_size=1024, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(clip_l(projection_dim=768)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(big_g()),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5_xxl(cut)),
        tokenizer_3=tokenizer,
    )


def qwen_image(tokenizer: Any, cut: bool = False) -> Any:
    """Return Qwen-Image: 1024x1024."""
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 2 if cut else 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "rope_scaling": {"type": "default", "mrope_section": [16, 24, 24], "rope_type": "default"},
    }
    return diffusers.QwenImagePipeline(
        scheduler=flow_matching(3.0),
        vae=diffusers.AutoencoderKLQwenImage(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text)),
        tokenizer=tokenizer,
        transformer=diffusers.QwenImageTransformer2DModel(),
    )


def krea(tokenizer: Any, cut: bool = False) -> Any:
    """Return Krea-2-Turbo: 1024x1024."""
    text = {**qwen3_4b(cut).to_dict(), "rope_scaling": {"mrope_section": [24, 20, 20], "rope_type": "default"}}
    return diffusers.Krea2Pipeline(
        scheduler=flow_matching(3.0),
        vae=diffusers.AutoencoderKLQwenImage(),
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text)),
        tokenizer=tokenizer,
        transformer=diffusers.Krea2Transformer2DModel(),
        is_distilled=True,
    )


def ernie(tokenizer: Any, cut: bool = False) -> Any:
    """Return ERNIE-Image-Turbo: 1024x1024."""
    text = {
        "model_type": "ministral3",
        "hidden_size": 3072,
        "intermediate_size": 9216,
        "num_hidden_layers": 2 if cut else 26,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 131_072,
    }
    return diffusers.ErnieImagePipeline(
        scheduler=flow_matching(3.0),
        vae=diffusers.AutoencoderKLFlux2(),
        text_encoder=Mistral3Model(Mistral3Config(text_config=text)),
        tokenizer=tokenizer,
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=4096, num_attention_heads=32, num_layers=36, ffn_hidden_size=12288, text_in_dim=3072
        ),
    )


def flow_matching(shift: float) -> Any:
    """Return the scheduler of the flow-matching models, with noise."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True)


def qwen3_4b(cut: bool, **changes: int) -> Qwen3Config:
    """Return the configuration of Qwen3 4B."""
    sizes = {
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 2 if cut else 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    return Qwen3Config(**{**sizes, **changes})


def pixart(tokenizer: Any, cut: bool = False) -> Any:
    """Return PixArt-LCM (alpha): 1024x1024."""
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(t5_xxl(cut)),
        vae=sd_vae(),
        transformer=diffusers.PixArtTransformer2DModel(sample_size=128, caption_channels=4096),
        scheduler=diffusers.LCMScheduler(**BETAS),
    )


def pixel(_: Any, cut: bool = False) -> Any:
    """Return the consistency model of ImageNet on 64x64 pixels."""
    unet = diffusers.UNet2DModel(
        sample_size=64,
        block_out_channels=(192, 384, 576, 768),
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        attention_head_dim=64,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=1000,
    )
    return diffusers.ConsistencyModelPipeline(unet, diffusers.CMStochasticIterativeScheduler())


def t5_xxl(cut: bool) -> T5Config:
    """Return the configuration of T5 v1.1 XXL's encoder."""
    layers = 2 if cut else 24
    return T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=layers, num_heads=64, feed_forward_proj="gated-gelu")


def clip_l(**changes: int) -> CLIPTextConfig:
    """Return the configuration of CLIP ViT-L/14's text encoder."""
    return CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **changes)


def big_g() -> CLIPTextConfig:
    """Return the configuration of OpenCLIP ViT-bigG/14's text encoder."""
    return CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )


def sd_vae(**config: Any) -> Any:
    """Return the autoencoder of Stable Diffusion and SDXL."""
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **{"sample_size": 512, "force_upcast": False, **config},
    )


SHAPES = {
    "sd15": Shape(sd15, SamplerSettings(steps=4, guidance=8.0), {"embeddings": (77, 768)}, 8, 4),
    "sdxl": Shape(sdxl, SamplerSettings(steps=4, guidance=1.0), {"embeddings": (77, 2048), "pooled": (1280,)}, 4, 2),
    "sana-0.6b": Shape(sana_small, SamplerSettings(steps=4), {"embeddings": (300, 2304), "mask": (300,)}, 8, 4),
    "sana-1.6b": Shape(sana_large, SamplerSettings(steps=4), {"embeddings": (300, 2304), "mask": (300,)}, 8, 4),
    "flux": Shape(flux, SamplerSettings(steps=4), {"embeddings": (512, 4096), "pooled": (768,)}, 2, 1),
    "z-image": Shape(z_image, SamplerSettings(steps=8, guidance=0.0), {"embeddings": (128, 2560), "mask": (128,)}, 2, 1),
    "klein-4b": Shape(klein_small, SamplerSettings(steps=4), {"embeddings": (512, 7680)}, 2, 1),
    "klein-9b": Shape(klein_large, SamplerSettings(steps=4), {"embeddings": (512, 12288)}, 2, 1),
    "sd3-medium": Shape(
        sd3_medium, SamplerSettings(steps=4, guidance=1.0), {"embeddings": (333, 4096), "pooled": (2048,)}, 2, 1
    ),
    "sd3.5-large": Shape(
        sd3_large, SamplerSettings(steps=4, guidance=1.0), {"embeddings": (333, 4096), "pooled": (2048,)}, 2, 1
    ),
    "qwen-image": Shape(qwen_image, SamplerSettings(steps=4, guidance=1.0), {"embeddings": (128, 3584), "mask": (128,)}, 2, 1),
    "krea-2": Shape(krea, SamplerSettings(steps=8), {"embeddings": (128, 12, 2560), "mask": (128,)}, 2, 1),
    "ernie-image": Shape(ernie, SamplerSettings(steps=8, guidance=1.0), {"embeddings": (128, 3072), "mask": (128,)}, 2, 1),
    "pixart": Shape(pixart, SamplerSettings(steps=4, guidance=1.0), {"embeddings": (120, 4096), "mask": (120,)}, 4, 2),
    "pixel-64": Shape(pixel, SamplerSettings(steps=4), {"labels": ()}, 16, 8),
}

SD15_DIFFUSION = Shape(
    sd15_diffusion, SamplerSettings(scheduler="ddim", steps=50, guidance=5.0), {"embeddings": (77, 768)}, 8, 4
)
"""For the doctor; its memory is counted as that of sd15."""

SHIPPED = {
    "ernie-image-turbo-*": "ernie-image",
    "flux2-klein-4b-*": "klein-4b",
    "krea-2-turbo-*": "krea-2",
    "qwen-image-lightning-*": "qwen-image",
    "sd3.5-large-turbo-*": "sd3.5-large",
    "z-image-turbo-*": "z-image",
    "ddpo-dreamshaper-v7-*": "sd15",
    "flux-schnell-80gb": "flux",
    "lcm-dreamshaper-v7-*": "sd15",
    "pixel-consistency": "pixel-64",
    "sana-sprint-0.6b": "sana-0.6b",
    "sana-sprint-1.6b": "sana-1.6b",
    "sd-turbo": "sd15",
    "sdxl-*": "sdxl",
}
"""Which shape stands for the model of a shipped configuration; SD-Turbo's network is Stable Diffusion's but for 1 %."""
