"""Full-size models without their weights: how large they are, what a round of them takes, and what the estimate says.

    python benchmarks/full_size.py                         # counted, on any machine: no memory, no computing
    python benchmarks/full_size.py --measure [--compile]   # real rounds with random weights; made for a CUDA GPU

Counted: the networks are built without storage, and every tensor that a round's calls would make is added up while it
lives (sampling: one call of the network for a batch, without gradient; decoding; learning: forward and backward of a
micro-batch through the policy's mean). That is what the tensors take; an allocator adds its own rounding and caches.

Measured: the trainer's own rounds; images a second by phase; peak memory as CUDA reports it. Without a GPU one round runs on the
CPU in fp32, two steps and one image at a time, which takes minutes, and the peak is the rise of the resident memory.
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
)

from rlcm import TrainConfig, Trainer
from rlcm.builtin import model_path
from rlcm.pipelines import MemoryEstimate, ModelSettings, SamplerSettings, estimate, make_denoiser
from rlcm.policy import AdapterSettings, Policy
from rlcm.samplers import build_table
from rlcm.types import Conditioning

GIB = 2**30
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@dataclass(frozen=True)
class Shape:
    """A published model's sizes, without its weights."""

    pipeline: Callable[[Any], Any]
    """From a tokenizer to the pipeline."""
    sampler: SamplerSettings
    embeddings: dict[str, tuple[int, ...]]
    """What the text encoders would say about one prompt."""
    batch: int
    """Images sampled at once."""
    micro_batch: int


def sd15(tokenizer: Any) -> Any:
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


def sdxl(tokenizer: Any) -> Any:
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


def sana(tokenizer: Any) -> Any:
    """Return SANA-Sprint 0.6B: 1024x1024 on a latent of 32x32."""
    gemma = Gemma2Config(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
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
            num_layers=28,
            num_attention_heads=36,
            attention_head_dim=32,
            num_cross_attention_heads=16,
            cross_attention_head_dim=72,
            cross_attention_dim=1152,
            caption_channels=2304,
            guidance_embeds=True,
            qk_norm="rms_norm_across_heads",
        ),
        scheduler=diffusers.SCMScheduler(),
    )


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
    "sana-0.6b": Shape(sana, SamplerSettings(steps=4), {"embeddings": (300, 2304), "mask": (300,)}, 8, 4),
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


def count(shape: Shape, checkpointing: bool) -> dict[str, Any]:
    """Return parameters, the estimate, and the bytes that the tensors of a round's calls take at their peak."""
    with torch.device("meta"):
        pipeline = shape.pipeline(None)
    model = ModelSettings(offload_text_encoders=True)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.to(torch.bfloat16).eval().requires_grad_(False)
    denoiser = make_denoiser(pipeline, shape.sampler, model)
    policy = Policy(denoiser, AdapterSettings())
    if checkpointing:
        denoiser.module.enable_gradient_checkpointing()
    need = estimate(denoiser, shape.batch, shape.micro_batch, training=True)
    table = build_table(pipeline.scheduler, **type(denoiser).table_options(pipeline, shape.sampler, model))
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (denoiser.module, pipeline.vae):
            _give_fake_storage(module)
        for name, value in vars(denoiser).items():
            if isinstance(value, torch.Tensor):
                setattr(denoiser, name, _fake(value))
        policy.named_parameters = {n: p for n, p in denoiser.module.named_parameters() if p.requires_grad}
        policy.table = denoiser.table = table
        peaks = {
            "sampling": _peak(policy, lambda: _sample(policy, shape, shape.batch)),
            "decode": _peak(policy, lambda: _decode(policy, shape.batch)),
            "learning": _peak(policy, lambda: _learn(policy, shape, shape.micro_batch)),
        }
    before = need.weights + need.optimiser
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
        "estimated": _parts(need),
        "counted": {"weights": need.weights, "optimiser": need.optimiser, **peaks, "total": before + max(peaks.values())},
    }


def _parts(need: MemoryEstimate) -> dict[str, int]:
    names = ("weights", "optimiser", "sampling", "decode", "learning", "total")
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
    denoiser: Any = policy.denoiser
    with Living(denoiser.module, denoiser.pipeline.vae) as living:
        work()
    return living.peak


def _inputs(policy: Policy, shape: Shape, size: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    embeddings = {name: torch.zeros(size, *rest, dtype=torch.bfloat16) for name, rest in shape.embeddings.items()}
    x = torch.zeros(size, *policy.denoiser.latent_shape)
    return x, torch.zeros(size, dtype=torch.long), Conditioning(embeddings)


@torch.no_grad()
def _sample(policy: Policy, shape: Shape, size: int) -> None:
    policy.step(*_inputs(policy, shape, size))


@torch.no_grad()
def _decode(policy: Policy, size: int) -> None:
    policy.denoiser.decode(torch.zeros(size, *policy.denoiser.latent_shape))


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


def measure(pipeline: Any, shape: Shape, *, compiled: bool, rounds: int, resident: int = 0) -> dict[str, Any]:
    """Return images a second by phase, the medians of real rounds, and peak memory beside the estimate.

    Args:
        resident: bytes that the process took before the pipeline was made; counts on a CPU only.
    """
    images = 2 * shape.batch
    config = TrainConfig.model_validate(
        {
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


def measure_full_size(shape: Shape, *, compiled: bool) -> dict[str, Any]:
    """Return `measure` of a model of this shape with random weights: in bf16 on a GPU, a small round in fp32 on a CPU."""
    on_gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(model_path("clip"))
    tokenizer.model_max_length = 77
    resident = psutil.Process().memory_info().rss
    with torch.device("cuda" if on_gpu else "cpu"), default_precision(torch.bfloat16 if on_gpu else torch.float32):
        pipeline = shape.pipeline(tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()
    if not on_gpu:
        shape = replace(shape, batch=1, micro_batch=1, sampler=shape.sampler.model_copy(update={"steps": 2}))
    return measure(pipeline, shape, compiled=compiled, rounds=3 if on_gpu else 1, resident=resident)


def main() -> None:
    """Count, or measure, and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--measure", action="store_true", help="real rounds, on a CUDA GPU if there is one")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/full_size.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    for name in arguments.models:
        shape = SHAPES[name]
        if arguments.measure:
            result[name] = measure_full_size(shape, compiled=arguments.compile)
        else:
            result[name] = [count(shape, checkpointing) for checkpointing in (False, True)]
        print(name, json.dumps(result[name], indent=2), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
