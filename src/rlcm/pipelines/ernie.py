"""ERNIE-Image: a single-stream flow-matching transformer on patches of latents, whose VAE normalises by statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rlcm.pipelines.flow import FlowDenoiser, padded, with_batch_norm_undone

BATCH_NORM_EPS = 1e-5
"""What the pipeline takes, whatever the VAE's configuration says."""


class ErnieDenoiser(FlowDenoiser):
    """ErnieImagePipeline: ERNIE-Image-Turbo, and ERNIE-Image with classifier-free guidance above 1.

    Prompts are taken as they are: the model that rewrites them (`use_pe`) is not loaded.
    """

    kind: ClassVar[str] = "ErnieImagePipeline"

    @classmethod
    def shift(cls, scheduler: Any, length: int, steps: int, config: Mapping[str, Any]) -> None:
        return None

    def encode_texts(self, texts: list[str]) -> dict[str, Tensor]:
        return padded(self.pipeline.encode_prompt(texts, self.device))

    def time(self, t: Tensor) -> Tensor:
        return t.to(self.dtype)

    def call(self, x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        return self.module(
            hidden_states=x,
            timestep=time,
            text_bth=embeddings["embeddings"],
            text_lens=embeddings["mask"].sum(1),
            return_dict=False,
        )[0]

    def unscale(self, latents: Tensor) -> Tensor:
        patches = with_batch_norm_undone(self.pipeline.vae, latents, BATCH_NORM_EPS)
        unpatched: Tensor = self.pipeline._unpatchify_latents(patches)
        return unpatched
