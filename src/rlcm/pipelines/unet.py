"""Stable Diffusion 1 and 2 in all their few-step forms: LCM, LCM-LoRA, Turbo, TCD; and with DDIM as in DDPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlcm.pipelines.base import PipelineDenoiser, with_negatives


class UNetDenoiser(PipelineDenoiser):
    """StableDiffusionPipeline and LatentConsistencyModelPipeline.

    A UNet with `time_cond_proj_dim` was distilled with guidance and takes the scale as an input; any other is run on the
    negative prompt too when the scale exceeds 1.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        size = self.config.time_cond_proj_dim
        self.scale_embedding: Tensor | None = None
        if size is not None:
            embedding = self.pipeline.get_guidance_scale_embedding(torch.tensor([self.guidance - 1]), embedding_dim=size)
            self.scale_embedding = embedding.to(self.device)

    @property
    def classifier_free(self) -> bool:
        return self.guidance > 1 and self.config.time_cond_proj_dim is None

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        guided = self.classifier_free
        positive, negative = self.pipeline.encode_prompt(
            prompts, self.device, 1, guided, negative_prompt=[self.sampler.negative_prompt] * len(prompts) if guided else None
        )
        embeddings = {"embeddings": positive}
        return with_negatives(embeddings, {"embeddings": negative}) if guided else embeddings

    def predict(self, x: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        return self.run_unet(x, t, embeddings["embeddings"], None)

    def run_unet(self, x: Tensor, t: Tensor, embeddings: Tensor, added: Mapping[str, Tensor] | None) -> Tensor:
        """Return the UNet's output with the guidance embedding, where it takes one."""
        scale = None if self.scale_embedding is None else self.scale_embedding.to(self.dtype).expand(len(x), -1)
        return self.module(
            x.to(self.dtype),
            t,
            encoder_hidden_states=embeddings,
            timestep_cond=scale,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
