"""Full-size models without their weights: how large they are, what a round of them takes, and what the estimate says.

    python benchmarks/full_size.py                         # counted, on any machine: no memory, no computing
    python benchmarks/full_size.py --measure [--compile]   # real rounds with random weights; made for a CUDA GPU
    python benchmarks/full_size.py --measure --models sd15 --pixels 512    # on a CPU

Counted: the networks are built without storage, and every tensor that a round's calls would make is added up while it
lives (sampling: one call of the network for a batch, without gradient; decoding, and decoding with the gradient of a reward;
learning: forward and backward of a micro-batch through the policy's mean). That is what the tensors take; an allocator adds
its own rounding and caches.

Measured: the trainer's own rounds; images a second by phase; peak memory as CUDA reports it. Without a GPU two rounds run on the
CPU in fp32, two steps and one image at a time, which takes minutes, and the peak is the rise of the resident memory; the large
text encoders are then cut to two layers, as they only encode the prompts once, and the file of results keeps the other runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from rlcm import TrainConfig, Trainer
from rlcm.builtin import model_path
from rlcm.pipelines import MemoryEstimate, ModelSettings, SamplerSettings, estimate, make_denoiser
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.policy.samplers import build_table
from rlcm.training.config import load_config
from rlcm.types import Conditioning

GIB = 2**30
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
    return diffusers.LatentConsistencyModelPipeline(
        vae=sd_vae(),
        text_encoder=CLIPTextModel(clip_l()),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
            time_cond_proj_dim=256,
        ),
        scheduler=diffusers.LCMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(tokenizer: Any, cut: bool = False) -> Any:
    """Return SDXL: 1024x1024."""
    big_g = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=sd_vae(sample_size=1024, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(clip_l()),
        text_encoder_2=CLIPTextModelWithProjection(big_g),
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


def clip_l() -> CLIPTextConfig:
    """Return the configuration of CLIP ViT-L/14's text encoder."""
    return CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


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
    "pixart": Shape(pixart, SamplerSettings(steps=4, guidance=1.0), {"embeddings": (120, 4096), "mask": (120,)}, 4, 2),
    "pixel-64": Shape(pixel, SamplerSettings(steps=4), {"labels": ()}, 16, 8),
}


class Living(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made and alive, and keeps their highest sum; `weights` were there before."""

    def __init__(self, *weights: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        there = (tensor for module in weights for tensor in (*module.parameters(), *module.buffers()))
        # Views of the weights share their storage.
        self.known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


SHIPPED = {
    "ddpo-dreamshaper-v7-*": "sd15",
    "flux-schnell-80gb": "flux",
    "lcm-dreamshaper-v7-*": "sd15",
    "pixel-consistency": "pixel-64",
    "sana-sprint-0.6b": "sana-0.6b",
    "sana-sprint-1.6b": "sana-1.6b",
    "sd-turbo": "sd15",
    "sdxl-lcm-lora-24gb": "sdxl",
    "sdxl-turbo": "sdxl",
}
"""Which shape stands for the model of a shipped configuration; SD-Turbo's network is Stable Diffusion's but for 1 %."""


def estimate_shipped(folder: Path = Path("configs")) -> dict[str, float]:
    """Return the estimate of every shipped configuration on a GPU with bf16, in GiB."""
    found = {}
    for pattern, name in SHIPPED.items():
        for file in sorted(folder.glob(f"{pattern}.yaml")):
            config = load_config(str(file))
            pipeline, denoiser = _on_meta(SHAPES[name], config.sampler, config.model, torch.bfloat16)
            Policy(denoiser, config.lora)
            if config.model.gradient_checkpointing:
                denoiser.module.enable_gradient_checkpointing()
            if config.model.vae_slicing:
                pipeline.vae.enable_slicing()
            batch = min(config.rollout.sample_batch_size, config.rollout.batch_size)
            need = estimate(denoiser, batch, config.run.micro_batch_size, training=True)
            found[file.stem] = round(need.total / GIB, 1)
    return found


def _on_meta(shape: Shape, sampler: SamplerSettings, model: ModelSettings, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a pipeline without storage, and its denoiser."""
    with torch.device("meta"):
        pipeline = shape.pipeline(None, False)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.to(dtype).eval().requires_grad_(False)
    return pipeline, make_denoiser(pipeline, sampler, model)


def count(shape: Shape, checkpointing: bool, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Return parameters, the estimate, and the bytes that the tensors of a round's calls take at their peak."""
    model = ModelSettings(offload_text_encoders=True)
    pipeline, denoiser = _on_meta(shape, shape.sampler, model, dtype)
    policy = Policy(denoiser, AdapterSettings())
    if checkpointing:
        for module in _networks(denoiser):
            if module._supports_gradient_checkpointing:
                module.enable_gradient_checkpointing()
    need = estimate(denoiser, shape.batch, shape.micro_batch, training=True)
    table = build_table(pipeline.scheduler, **type(denoiser).table_options(pipeline, shape.sampler, model))
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in _networks(denoiser):
            _give_fake_storage(module)
        for name, value in vars(denoiser).items():
            if isinstance(value, torch.Tensor):
                setattr(denoiser, name, _fake(value))
        policy.named_parameters = {n: p for n, p in denoiser.module.named_parameters() if p.requires_grad}
        policy.table = denoiser.table = table
        peaks = {
            "sampling": _peak(policy, lambda: _sample(policy, shape, shape.batch)),
            "decode": _peak(policy, lambda: _decode(policy, shape.batch)),
            "decode_with_gradient": _peak(policy, lambda: _decode_and_back(policy, shape.micro_batch)),
            "learning": _peak(policy, lambda: _learn(policy, shape, shape.micro_batch)),
        }
    before = need.weights + need.optimiser
    round_peaks = [peaks[name] for name in ("sampling", "decode", "learning")]
    return {
        "parameters": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in pipeline.components.items()
            if isinstance(part, nn.Module)
        },
        "trained": sum(p.numel() for p in policy.parameters),
        "batch": shape.batch,
        "micro_batch": shape.micro_batch,
        "checkpointing": checkpointing,
        "dtype": str(dtype).removeprefix("torch."),
        "estimated": _parts(need),
        "counted": {"weights": need.weights, "optimiser": need.optimiser, **peaks, "total": before + max(round_peaks)},
        "gib_per_sample": {
            name: round(peak / (shape.batch if name in ("sampling", "decode") else shape.micro_batch) / GIB, 4)
            for name, peak in peaks.items()
        },
    }


def _parts(need: MemoryEstimate) -> dict[str, int]:
    names = ("weights", "encoding", "optimiser", "sampling", "decode", "learning", "heap", "total")
    return {name: getattr(need, name) for name in names}


def _give_fake_storage(root: nn.Module) -> None:
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_fake(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _fake(buffer)


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _peak(policy: Policy, work: Callable[[], None]) -> int:
    with Living(*_networks(policy.denoiser)) as living:
        work()
    return living.peak


def _networks(denoiser: Any) -> list[nn.Module]:
    """Return the networks that a round calls: what is trained, and the decoder where there is one."""
    return [denoiser.module, *(part for name, part in denoiser.pipeline.components.items() if name == "vae")]


def _inputs(policy: Policy, shape: Shape, size: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    embeddings = {
        name: torch.zeros(size, *rest, dtype=torch.long if name == "labels" else policy.denoiser.dtype)
        for name, rest in shape.embeddings.items()
    }
    x = torch.zeros(size, *policy.denoiser.latent_shape)
    return x, torch.zeros(size, dtype=torch.long), Conditioning(embeddings)


@torch.no_grad()
def _sample(policy: Policy, shape: Shape, size: int) -> None:
    policy.step(*_inputs(policy, shape, size))


@torch.no_grad()
def _decode(policy: Policy, size: int) -> None:
    policy.denoiser.decode(torch.zeros(size, *policy.denoiser.latent_shape))


def _decode_and_back(policy: Policy, size: int) -> None:
    latents = torch.zeros(size, *policy.denoiser.latent_shape, requires_grad=True)
    policy.denoiser.decode(latents).square().mean().backward()


def _learn(policy: Policy, shape: Shape, size: int) -> None:
    _, mean, _ = policy.step(*_inputs(policy, shape, size))
    mean.square().mean().backward()
    for parameter in policy.parameters:
        parameter.grad = None


@contextlib.contextmanager
def default_precision(dtype: torch.dtype) -> Iterator[None]:
    """Within it, new networks get this precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def measure(
    pipeline: Any, shape: Shape, *, compiled: bool, rounds: int, pixels: int | None = None, resident: int = 0
) -> dict[str, Any]:
    """Return images a second by phase, the medians of real rounds, and peak memory beside the estimate.

    Args:
        pixels: height and width of the images; None is the model's own.
        resident: bytes that the process took before the pipeline was made; counts on a CPU only.
    """
    images = 2 * shape.batch
    config = TrainConfig.model_validate(
        {
            "model": {"height": pixels, "width": pixels},
            "sampler": shape.sampler.model_dump(),
            "rollout": {"batch_size": images, "sample_batch_size": shape.batch},
            "run": {"micro_batch_size": shape.micro_batch, "tracker": "none"},
            "rewards": ["brightness"],  # cheap, and never the same for two images
            "evaluation": {"images": 2},
        }
    )
    trainer = Trainer(config, model=pipeline)
    denoiser: Any = trainer.parts.policy.denoiser
    need = estimate(denoiser, shape.batch, shape.micro_batch, training=True)
    if compiled:
        denoiser.module.compile()
    trainer.round()  # warms up, and is checked before it learns
    on_gpu = denoiser.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found = [trainer.round() for _ in range(rounds)]

    def median(key: str) -> float:
        return sorted(metrics[key] for metrics in found)[rounds // 2]

    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "compiled": compiled,
        "pixels": denoiser.height,
        "threads": torch.get_num_threads(),
        "images_per_second": {
            "sampling": images / median("time/sample"),
            "learning": images / median("time/update"),
            "round": median("images_per_second"),
        },
        "estimated": _parts(need),
        "measured_peak": torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident,
    }


def measure_full_size(shape: Shape, *, compiled: bool, pixels: int | None = None) -> dict[str, Any]:
    """Return `measure` of a model of this shape with random weights: in bf16 on a GPU, a small round in fp32 on a CPU."""
    on_gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(model_path("clip"))
    tokenizer.model_max_length = 77
    resident = psutil.Process().memory_info().rss
    with torch.device("cuda" if on_gpu else "cpu"), default_precision(torch.bfloat16 if on_gpu else torch.float32):
        pipeline = shape.pipeline(tokenizer, not on_gpu)
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "vae"):
        pipeline.vae.enable_slicing()
    if not on_gpu:
        shape = replace(shape, batch=1, micro_batch=1, sampler=shape.sampler.model_copy(update={"steps": 2}))
    return measure(pipeline, shape, compiled=compiled, rounds=3 if on_gpu else 1, pixels=pixels, resident=resident)


def main() -> None:
    """Count, or measure, and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--measure", action="store_true", help="real rounds, on a CUDA GPU if there is one")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--pixels", type=int, help="height and width of the measured images")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/full_size.json"))
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    result: dict[str, Any] = {}
    if arguments.measure and arguments.out.exists():
        result = json.loads(arguments.out.read_text())
    result |= {"torch": torch.__version__, "diffusers": diffusers.__version__}
    for name in arguments.models:
        shape = SHAPES[name]
        key = name
        if arguments.measure:
            found: Any = measure_full_size(shape, compiled=arguments.compile, pixels=arguments.pixels)
            key = f"{name} at {found['pixels']} px"
        else:
            found = [
                count(shape, checkpointing, dtype)
                for dtype in (torch.bfloat16, torch.float32)
                for checkpointing in (False, True)
            ]
        result[key] = found
        print(key, json.dumps(found, indent=2), flush=True)
    if not arguments.measure:
        result["shipped_configurations_gib"] = estimate_shipped()
        print(json.dumps(result["shipped_configurations_gib"], indent=2))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
