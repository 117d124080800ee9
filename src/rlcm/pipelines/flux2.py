"""FLUX.2 klein: a flow-matching transformer on packed latents with four coordinates a position, whose VAE normalises by statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcm.pipelines.base import call_default
from rlcm.pipelines.flow import FlowDenoiser, with_batch_norm_undone


class Flux2KleinDenoiser(FlowDenoiser):
    """Flux2KleinPipeline: the distilled ones without guidance, the base models with classifier-free guidance above 1.

    Latents stay packed, [B, L, C]: one row for each 2x2 patch. The negative prompt is empty, as in the pipeline.
    """

    kind: ClassVar[str] = "Flux2KleinPipeline"
    packed: ClassVar[bool] = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        shape = (1, self.config.in_channels, *self.patches())
        self.image_ids = self.pipeline._prepare_latent_ids(torch.empty(shape, device="meta")).to(self.device)

    @classmethod
    def shift(cls, scheduler: Any, length: int, steps: int, config: Mapping[str, Any]) -> float:
        return float(cls.rule("compute_empirical_mu")(image_seq_len=length, num_steps=steps))

    @property
    def negative_prompt(self) -> str:
        return ""  # the pipeline takes none

    def encode_texts(self, texts: list[str]) -> dict[str, Tensor]:
        length = call_default(self.pipeline, "max_sequence_length")
        layers = call_default(self.pipeline, "text_encoder_out_layers")
        embeddings, _ = self.pipeline.encode_prompt(
            texts, device=self.device, max_sequence_length=length, text_encoder_out_layers=layers
        )
        return {"embeddings": embeddings}

    def call(self, x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        text = embeddings["embeddings"]
        return self.module(
            hidden_states=x,
            timestep=time,
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=self.pipeline._prepare_text_ids(text[:1]).to(x.device).expand(len(x), -1, -1),
            img_ids=self.image_ids.expand(len(x), -1, -1),
            return_dict=False,
        )[0]

    def unscale(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        patches = self.unpack(latents)
        unpatched: Tensor = self.pipeline._unpatchify_latents(with_batch_norm_undone(vae, patches, vae.config.batch_norm_eps))
        return unpatched

    def unpack(self, latents: Tensor) -> Tensor:
        """Return patches [B, C, rows, columns]."""
        ids = self.image_ids.expand(len(latents), -1, -1)
        patches: Tensor = self.pipeline._unpack_latents_with_ids(latents, ids, *self.patches())
        return patches
