"""Stable Diffusion XL: LCM, LCM-LoRA, Turbo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlcm.pipelines.base import with_negatives
from rlcm.pipelines.unet import UNetDenoiser


class SDXLDenoiser(UNetDenoiser):
    """StableDiffusionXLPipeline: a second, pooled embedding and the image's size condition the UNet too.

    An empty negative prompt is the pipeline's default, which its `force_zeros_for_empty_prompt` turns into zeros.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        size = (self.height, self.width)
        self.time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=self.device)

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        guided = self.classifier_free
        positive, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompts,
            device=self.device,
            do_classifier_free_guidance=guided,
            negative_prompt=self.sampler.negative_prompt or None,
        )
        embeddings = {"embeddings": positive, "pooled": pooled}
        if not guided:
            return embeddings
        return with_negatives(embeddings, {"embeddings": negative, "pooled": negative_pooled})

    def predict(self, x: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        added = {"text_embeds": embeddings["pooled"], "time_ids": self.time_ids.to(self.dtype).expand(len(x), -1)}
        return self.run_unet(x, t, embeddings["embeddings"], added)

    def unscale(self, latents: Tensor) -> Tensor:
        """Return latents in the units of the VAE: std z / scale + mean, where the VAE has such statistics."""
        config = self.pipeline.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return super().unscale(latents)
        mean, std = (torch.tensor(values, device=latents.device).view(1, -1, 1, 1) for values in (mean, std))
        return latents * std / config.scaling_factor + mean
