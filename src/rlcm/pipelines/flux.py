"""FLUX.1: a flow-matching transformer on packed latents, guided by an input of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcm.errors import ConfigError
from rlcm.pipelines.base import call_default
from rlcm.pipelines.flow import FlowDenoiser
from rlcm.pipelines.settings import ModelSettings, SamplerSettings


class FluxDenoiser(FlowDenoiser):
    """FluxPipeline. Latents stay packed, [B, L, 4 C]: one row for each 2x2 patch of a [C, h, w] latent, L = h w / 4.

    The guidance scale is an input of networks with `guidance_embeds` (dev); others (schnell) have none.
    """

    kind: ClassVar[str] = "FluxPipeline"
    packed: ClassVar[bool] = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.image_ids = self.pipeline._prepare_latent_image_ids(1, *self.patches(), self.device, torch.float32)

    @classmethod
    def check(cls, config: Mapping[str, Any], sampler: SamplerSettings, model: ModelSettings) -> None:
        if config.get("guidance_embeds") is False and sampler.guidance is not None and sampler.guidance > 1:
            raise ConfigError(
                f"sampler.guidance={sampler.guidance}: {model.path} was distilled without guidance (guidance_embeds is false in its "
                "transformer/config.json), and takes none; leave it out."
            )

    @property
    def classifier_free(self) -> bool:
        return False

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=call_default(self.pipeline, "max_sequence_length")
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def call(self, x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        text = embeddings["embeddings"]
        return self.module(
            hidden_states=x,
            timestep=time,
            guidance=torch.full((len(x),), self.guidance, device=x.device) if self.config.guidance_embeds else None,
            pooled_projections=embeddings["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=self.dtype),
            img_ids=self.image_ids.to(self.dtype),
            return_dict=False,
        )[0]
