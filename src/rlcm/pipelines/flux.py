"""FLUX.1: a flow-matching transformer on packed latents, sampled stochastically."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcm.pipelines.base import PipelineDenoiser, call_default, image_size
from rlcm.pipelines.settings import ModelSettings, SamplerSettings

PATCHES_AT_1024 = 64 * 64


class FluxDenoiser(PipelineDenoiser):
    """FluxPipeline. Latents stay packed, [B, L, 4 C]: one row for each 2x2 patch of a [C, h, w] latent, L = h w / 4.

    The guidance scale is an input of networks with `guidance_embeds` (dev) and ignored by others (schnell).
    """

    network: ClassVar[str] = "transformer"
    schedulers: ClassVar[tuple[str, ...]] = ("flow_euler_stochastic", "flow_lcm")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        rows, columns = self._patches()
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        self.image_ids = torch.cat([torch.zeros(len(grid), 1), grid], dim=1).to(self.device)

    @classmethod
    def table_options(cls, pipeline: Any, sampler: SamplerSettings, model: ModelSettings) -> dict[str, Any]:
        """Return the noise levels before the shift, 1 .. 1/N, and mu, the shift's exponent, which grows with the image."""
        height, width = image_size(pipeline, model)
        length = (height // pipeline.vae_scale_factor // 2) * (width // pipeline.vae_scale_factor // 2)
        return _options(length, pipeline.scheduler, sampler)

    @classmethod
    def options_before_loading(cls, scheduler: Any, sampler: SamplerSettings) -> dict[str, Any]:
        return _options(PATCHES_AT_1024, scheduler, sampler)

    @property
    def classifier_free(self) -> bool:
        return False

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=call_default(self.pipeline, "max_sequence_length")
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def predict(self, x: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        text = embeddings["embeddings"]
        takes_guidance = self.config.guidance_embeds
        return self.module(
            hidden_states=x.to(self.dtype),
            timestep=t.to(self.dtype) / 1000,  # rounded first, as the network was trained
            guidance=torch.full((len(x),), self.guidance, device=x.device) if takes_guidance else None,
            pooled_projections=embeddings["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=self.dtype),
            img_ids=self.image_ids.to(self.dtype),
            return_dict=False,
        )[0]

    def unscale(self, latents: Tensor) -> Tensor:
        """Return unpacked latents [B, C, h, w] in the units of the VAE."""
        rows, columns = self._patches()
        config = self.pipeline.vae.config
        return unpack(latents, rows, columns) / config.scaling_factor + config.shift_factor

    def shape_of_latents(self) -> tuple[int, ...]:
        rows, columns = self._patches()
        return (rows * columns, self.config.in_channels)

    def _patches(self) -> tuple[int, int]:
        factor = 2 * self.pipeline.vae_scale_factor
        return self.height // factor, self.width // factor


def _options(length: int, scheduler: Any, sampler: SamplerSettings) -> dict[str, Any]:
    levels = list(sampler.timesteps) if sampler.timesteps else [1 - i / sampler.steps for i in range(sampler.steps)]
    return {
        "num_steps": len(levels),
        "eta": sampler.eta,
        "original_inference_steps": sampler.original_inference_steps,
        "sigmas": levels,
        "mu": shift_exponent(length, scheduler.config),
    }


def unpack(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Return latents [B, C, 2 rows, 2 columns] from patches [B, rows columns, 4 C], the channel outermost in a patch."""
    b, channels = len(patches), patches.shape[-1] // 4
    return patches.view(b, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, channels, rows * 2, columns * 2)


def shift_exponent(length: int, config: Any) -> float:
    """Return mu for an image of `length` patches: linear, through the scheduler's two points (length, shift)."""
    short, long = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (long - short)
    return float(length * slope + low - slope * short)
