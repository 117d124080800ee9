"""Qwen-Image: a flow-matching transformer on packed latents, with a decoder of films that is given a single frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rlcm.pipelines.base import call_default
from rlcm.pipelines.flow import FlowDenoiser, padded


class OneFrameDenoiser(FlowDenoiser):
    """A model whose VAE, AutoencoderKLQwenImage, decodes films: latents [B, C, 1, h, w], normalised a channel at a time.

    Its images are within [0, 1]: it clamps them itself, and no gradient passes where it does.
    """

    packed: ClassVar[bool] = True

    def unscale(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        mean, std = (
            torch.tensor(each, device=latents.device).view(1, -1, 1, 1, 1) for each in (config.latents_mean, config.latents_std)
        )
        return self.unpack(latents) * std + mean

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        film = vae.decode(self.unscale(latents.float()).to(vae.dtype), return_dict=False)[0]
        return film[:, :, 0].float() * 0.5 + 0.5


class QwenDenoiser(OneFrameDenoiser):
    """QwenImagePipeline, as it is or with a Lightning LoRA in `model.loras`.

    `sampler.guidance` is the pipeline's `true_cfg_scale`. Left out, there is none unless `sampler.negative_prompt` is given, as in
    the pipeline.
    """

    kind: ClassVar[str] = "QwenImagePipeline"
    guided_by: ClassVar[str] = "true_cfg_scale"

    def guidance_scale(self) -> float:
        if self.sampler.guidance is None and not self.sampler.negative_prompt:
            return self.unguided
        return super().guidance_scale()

    def guide(self, unguided: Tensor, guided: Tensor) -> Tensor:
        """Return the guided output with the norm, position by position, that it has for the prompt alone."""
        both = super().guide(unguided, guided)
        return both * (guided.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))

    def encode_texts(self, texts: list[str]) -> dict[str, Tensor]:
        length = call_default(self.pipeline, "max_sequence_length")
        embeddings, mask = self.pipeline.encode_prompt(texts, device=self.device, max_sequence_length=length)
        # No mask is said where no prompt is padded.
        return padded(
            list(embeddings) if mask is None else [row[own.bool()] for row, own in zip(embeddings, mask, strict=True)]
        )

    def call(self, x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        return self.module(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=embeddings["embeddings"],
            encoder_hidden_states_mask=embeddings["mask"],
            img_shapes=[[(1, *self.patches())]] * len(x),
            return_dict=False,
        )[0]
