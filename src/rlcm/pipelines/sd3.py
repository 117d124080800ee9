"""Stable Diffusion 3 and 3.5: a flow-matching transformer told of prompts by three encoders, two of them also in one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rlcm.errors import ConfigError
from rlcm.pipelines.base import call_default, with_negatives
from rlcm.pipelines.flow import FlowDenoiser


class SD3Denoiser(FlowDenoiser):
    """StableDiffusion3Pipeline: SD3 and SD3.5, their turbos without guidance, the others with classifier-free guidance above 1.

    Without `sampler.timesteps` the noise levels before the shift are 1 .. 1/N, for which these turbos were distilled. The
    pipeline's own default goes down to the smallest level before its last step: 1, .858, .602, .0089 in four.
    """

    kind: ClassVar[str] = "StableDiffusion3Pipeline"
    levels_are_the_pipelines: ClassVar[bool] = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        most = self.config.pos_embed_max_size
        if max(self.patches()) > most:
            pixels = most * self.height // self.patches()[0]
            raise ConfigError(
                f"model.height={self.height}, model.width={self.width}: this network has positions for {most} patches a side; use "
                f"{pixels} pixels at most."
            )

    @classmethod
    def shift(cls, scheduler: Any, length: int, steps: int, config: Mapping[str, Any]) -> float | None:
        return super().shift(scheduler, length, steps, config) if scheduler.config.get("use_dynamic_shifting") else None

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        embeddings, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=self.classifier_free,
            negative_prompt=[self.sampler.negative_prompt] * len(prompts),
            max_sequence_length=call_default(self.pipeline, "max_sequence_length"),
        )
        positive = {"embeddings": embeddings, "pooled": pooled}
        if not self.classifier_free:
            return positive
        return with_negatives(positive, {"embeddings": negative, "pooled": negative_pooled})

    def time(self, t: Tensor) -> Tensor:
        return t

    def call(self, x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        return self.module(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=embeddings["embeddings"],
            pooled_projections=embeddings["pooled"],
            return_dict=False,
        )[0]
