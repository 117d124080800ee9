"""How much memory a run will take, before it takes it: an estimate from measured models, scaled to this one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlcm.pipelines.base import PipelineDenoiser, text_encoders

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Reference:
    """What one sample's activations take in a published network, in bf16 with an fp32 LoRA and fused attention."""

    sampling: float
    """GiB that a call without gradient passes through."""
    saved: float
    """GiB of a forward and backward pass."""
    checkpointed: float
    """GiB of the same with gradient checkpointing."""
    positions: int
    """Positions of the latent there (h w, or the packed length)."""
    parameters: float


STABLE_DIFFUSION = (Reference(0.064, 1.00, 0.24, 64 * 64, 0.86e9),)
PIXART = (Reference(0.45, 5.3, 0.45, 128 * 128, 0.61e9),)
REFERENCES: dict[str, tuple[Reference, ...]] = {
    "LatentConsistencyModelPipeline": STABLE_DIFFUSION,
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": (Reference(0.155, 7.33, 0.54, 128 * 128, 2.57e9),),
    "ConsistencyModelPipeline": STABLE_DIFFUSION,
    "SanaSprintPipeline": (
        Reference(0.038, 3.65, 0.203, 32 * 32, 0.59e9),
        Reference(0.072, 5.06, 0.360, 32 * 32, 1.60e9),
    ),
    "FluxPipeline": (Reference(1.6, 39.7, 1.6, 64 * 64, 11.9e9),),
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
}
"""Counted by benchmarks/full_size.py: Stable Diffusion at 512x512 pixels, consistency models on pixels at 64x64, all others at
1024x1024."""
DECODE = Reference(0.375, 2.8, 0.40, 512 * 512, 0.05e9)
"""Stable Diffusion's VAE decoder for one image of 512x512 pixels."""
DECODE_WIDTH = 128
FULL_PRECISION = 1.55
"""How many times more a forward and backward pass takes in fp32 than in bf16: not twice, as the LoRA is fp32 in both."""
HEAP = 1.6
"""How many times its activations the heap of a process grows on a CPU, measured: freed blocks lie scattered and are kept."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part. Sampling, decoding and learning take turns, so only the largest of the three counts."""

    weights: int
    """All weights on the network's device."""
    optimiser: int
    """Gradients and Adam's two moments of the trainable weights, fp32."""
    sampling: int
    """A forward pass of a whole batch, without gradient."""
    decode: int
    """The decoder's activations."""
    learning: int
    """Activations of a micro-batch's forward and backward pass; 0 when not training."""
    heap: int = 0
    """What a CPU's memory allocator keeps of freed activations while others need room; a GPU's cache gives it to them."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.weights + self.optimiser + max(self.sampling, self.decode, self.learning) + self.heap

    def __str__(self) -> str:
        names = ("weights", "optimiser", "sampling", "decode", "learning", *(["heap"] if self.heap else []))
        parts = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in names)
        return f"about {self.total / GIB:.2f} GiB at the peak ({parts})"


def estimate(
    denoiser: PipelineDenoiser,
    batch: int,
    micro_batch: int,
    training: bool,
    *,
    differentiable: bool = False,
    calls: int = 1,
) -> MemoryEstimate:
    """Return an estimate of the memory that sampling and training take.

        activations = counted x (positions / counted's) x sqrt(parameters / counted's) x (bytes of a number / 2)

    The root, because at equal depth parameters grow with the width's square and activations with the width. Expect a factor
    of about two for networks unlike the counted ones.

    On a CPU the parts add up: network activations stay in the heap, grown by `HEAP`, while the decoder's large ones come on
    top, and text encoders that are offloaded stay where they are.

    Args:
        denoiser: with its adapters, if they are to be counted.
        batch: images sampled and decoded at once.
        micro_batch: samples of one backward pass.
        training: whether there are backward passes.
        differentiable: whether the reward is back-propagated through the decoder.
        calls: network calls that one backward pass goes through.

    Raises:
        ValueError: if batch, micro_batch or calls is below 1.
    """
    if min(batch, micro_batch, calls) < 1:
        raise ValueError(f"batch={batch}, micro_batch={micro_batch}, calls={calls}: use 1 or more.")
    shape = denoiser.latent_shape
    positions = shape[0] if len(shape) == 2 else math.prod(shape[1:])
    parameters = sum(p.numel() for p in denoiser.module.parameters())
    reference = min(
        REFERENCES[type(denoiser.pipeline).__name__], key=lambda found: abs(math.log(parameters / found.parameters))
    )
    scale = positions / reference.positions * math.sqrt(parameters / reference.parameters) * GIB
    scale *= 2 if denoiser.classifier_free else 1
    wide = denoiser.dtype.itemsize > 2
    checkpointed = getattr(denoiser.module, "is_gradient_checkpointing", False)
    kept = (reference.checkpointed if checkpointed else reference.saved) * (FULL_PRECISION if wide else 1)
    sampling = round(batch * reference.sampling * (2 if wide else 1) * scale)
    network = round(micro_batch * calls * kept * scale) if training else 0
    decode = _decode(denoiser, batch, micro_batch, training and differentiable)
    learning = network + (decode if training and differentiable else 0)
    heap = 0
    if denoiser.device.type == "cpu":
        heap = round(HEAP * max(sampling, network)) + decode - max(sampling, decode, learning)
    return MemoryEstimate(
        weights=_weights(denoiser),
        optimiser=12 * sum(p.numel() for p in denoiser.module.parameters() if p.requires_grad) if training else 0,
        sampling=sampling,
        decode=decode,
        learning=learning,
        heap=heap,
    )


def _weights(denoiser: PipelineDenoiser) -> int:
    offloaded = denoiser.offload_text_encoders and denoiser.device.type != "cpu"
    away = {id(encoder) for encoder in text_encoders(denoiser.pipeline)} if offloaded else set()
    modules = [m for m in denoiser.pipeline.components.values() if isinstance(m, nn.Module) and id(m) not in away]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _decode(denoiser: PipelineDenoiser, batch: int, micro_batch: int, differentiable: bool) -> int:
    vae: Any = getattr(denoiser.pipeline, "vae", None)
    if vae is None:
        return 0
    channels = vae.config.get("block_out_channels") or vae.config.get("decoder_block_out_channels") or (DECODE_WIDTH,)
    size: torch.dtype = vae.dtype
    scale = denoiser.height * denoiser.width / DECODE.positions * channels[0] / DECODE_WIDTH * size.itemsize / 2
    checkpointed = getattr(vae, "is_gradient_checkpointing", False)
    images = micro_batch if differentiable else 1 if getattr(vae, "use_slicing", False) else batch
    if not differentiable:
        return round(images * DECODE.sampling * scale * GIB)
    return round(images * (DECODE.checkpointed if checkpointed else DECODE.saved) * scale * GIB)
