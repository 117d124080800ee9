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
    """What one sample's activations took in a measured network, in bf16 with fused attention and LoRA."""

    saved: float
    """GiB that autograd keeps for a sample and step."""
    checkpointed: float
    """GiB with gradient checkpointing; also about what a forward pass without gradient passes through."""
    positions: int
    """Positions of the latent there (h w, or the packed length)."""
    parameters: float


REFERENCES = {
    "LatentConsistencyModelPipeline": Reference(0.91, 0.14, 64 * 64, 0.86e9),
    "StableDiffusionPipeline": Reference(0.91, 0.14, 64 * 64, 0.86e9),
    "ConsistencyModelPipeline": Reference(0.91, 0.14, 64 * 64, 0.86e9),
    "StableDiffusionXLPipeline": Reference(6.8, 0.55, 128 * 128, 2.57e9),
    "SanaSprintPipeline": Reference(4.9, 0.11, 32 * 32, 1.6e9),
    "FluxPipeline": Reference(39.7, 1.6, 64 * 64, 11.9e9),
    "PixArtAlphaPipeline": Reference(5.3, 0.45, 128 * 128, 0.61e9),
    "PixArtSigmaPipeline": Reference(5.3, 0.45, 128 * 128, 0.61e9),
}
"""Measured at 512x512 for Stable Diffusion, 1024x1024 otherwise; PixArt is computed from its layers."""
DECODE = Reference(2.8, 0.40, 512 * 512, 0.05e9)
"""Stable Diffusion's VAE decoder for one image of 512x512 pixels."""
DECODE_WIDTH = 128


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part. Sampling and learning take turns, so only the larger of the two counts."""

    weights: int
    """All weights on the network's device."""
    optimiser: int
    """Gradients and Adam's two moments of the trainable weights, fp32."""
    sampling: int
    """A forward pass of a whole batch, without gradient."""
    decode: int
    """The decoder's activations."""
    learning: int
    """Activations kept for the backward pass of a micro-batch; 0 when not training."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.weights + self.optimiser + max(self.sampling, self.decode, self.learning)

    def __str__(self) -> str:
        names = ("weights", "optimiser", "sampling", "decode", "learning")
        parts = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in names)
        return f"about {self.total / GIB:.2f} GiB at the peak ({parts})"


def estimate(
    denoiser: PipelineDenoiser, batch: int, micro_batch: int, training: bool, *, differentiable: bool = False
) -> MemoryEstimate:
    """Return an estimate of the memory that sampling and training take.

        activations = measured x (positions / measured's) x sqrt(parameters / measured's) x (bytes of a number / 2)

    The root, because at equal depth parameters grow with the width's square and activations with the width. Expect a factor
    of about two for networks unlike the measured ones.

    Args:
        denoiser: with its adapters, if they are to be counted.
        batch: images sampled and decoded at once.
        micro_batch: samples of one backward pass.
        training: whether there are backward passes.
        differentiable: whether the reward is back-propagated through the decoder.

    Raises:
        ValueError: if batch or micro_batch is below 1.
    """
    if batch < 1 or micro_batch < 1:
        raise ValueError(f"batch={batch}, micro_batch={micro_batch}: use 1 or more.")
    reference = REFERENCES[type(denoiser.pipeline).__name__]
    shape = denoiser.latent_shape
    positions = shape[0] if len(shape) == 2 else math.prod(shape[1:])
    parameters = sum(p.numel() for p in denoiser.module.parameters())
    scale = positions / reference.positions * math.sqrt(parameters / reference.parameters) * denoiser.dtype.itemsize / 2
    scale *= 2 if denoiser.classifier_free else 1
    checkpointed = getattr(denoiser.module, "is_gradient_checkpointing", False)
    kept = reference.checkpointed if checkpointed else reference.saved
    return MemoryEstimate(
        weights=_weights(denoiser),
        optimiser=12 * sum(p.numel() for p in denoiser.module.parameters() if p.requires_grad) if training else 0,
        sampling=round(batch * reference.checkpointed * scale * GIB),
        decode=_decode(denoiser, batch, micro_batch, training and differentiable),
        learning=round(micro_batch * kept * scale * GIB) if training else 0,
    )


def _weights(denoiser: PipelineDenoiser) -> int:
    away = {id(encoder) for encoder in text_encoders(denoiser.pipeline)} if denoiser.offload_text_encoders else set()
    modules = [m for m in denoiser.pipeline.components.values() if isinstance(m, nn.Module) and id(m) not in away]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _decode(denoiser: PipelineDenoiser, batch: int, micro_batch: int, differentiable: bool) -> int:
    vae: Any = getattr(denoiser.pipeline, "vae", None)
    if vae is None:
        return 0
    channels = vae.config.get("block_out_channels") or vae.config.get("decoder_block_out_channels") or (DECODE_WIDTH,)
    size: torch.dtype = vae.dtype
    scale = denoiser.height * denoiser.width / DECODE.positions * channels[0] / DECODE_WIDTH * size.itemsize / 2
    checkpointed = not differentiable or getattr(vae, "is_gradient_checkpointing", False)
    images = micro_batch if differentiable else 1 if getattr(vae, "use_slicing", False) else batch
    return round(images * (DECODE.checkpointed if checkpointed else DECODE.saved) * scale * GIB)
