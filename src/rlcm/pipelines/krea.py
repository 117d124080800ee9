"""Krea 2: a single-stream flow-matching transformer that is told of prompts by many layers of their encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rlcm.pipelines.base import call_default
from rlcm.pipelines.flow import padded
from rlcm.pipelines.qwen import OneFrameDenoiser

SHIFT_OF_DISTILLED = 1.15
"""mu of the distilled model, at every size; the pipeline has the number inside its call."""


class KreaDenoiser(OneFrameDenoiser):
    """Krea2Pipeline: Krea-2-Turbo without guidance, the base model with classifier-free guidance above 0."""

    kind: ClassVar[str] = "Krea2Pipeline"
    unguided: ClassVar[float] = 0.0

    @classmethod
    def shift(cls, scheduler: Any, length: int, steps: int, config: Mapping[str, Any]) -> float | None:
        return SHIFT_OF_DISTILLED if config.get("is_distilled") else super().shift(scheduler, length, steps, config)

    def encode_texts(self, texts: list[str]) -> dict[str, Tensor]:
        length = call_default(self.pipeline, "max_sequence_length")
        embeddings, mask = self.pipeline.encode_prompt(texts, device=self.device, max_sequence_length=length)
        # All tokens are at one position, and padding among them is never looked at: 31 MB a prompt, were it kept.
        return padded([row[own] for row, own in zip(embeddings, mask, strict=True)])

    def time(self, t: Tensor) -> Tensor:
        return (t / self.pipeline.scheduler.config.num_train_timesteps).to(self.dtype)

    def call(self, x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        text = embeddings["embeddings"]
        return self.module(
            hidden_states=x,
            encoder_hidden_states=text,
            timestep=time,
            position_ids=self.pipeline.prepare_position_ids(text.shape[1], *self.patches(), x.device),
            encoder_attention_mask=embeddings["mask"],
            return_dict=False,
        )[0]

    def unpack(self, latents: Tensor) -> Tensor:
        unpacked: Tensor = self.pipeline._unpack_latents(latents, self.height, self.width)
        return unpacked
