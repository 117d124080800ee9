"""PixArt-alpha and PixArt-sigma, also as LCMs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from torch import Tensor

from rlcm.pipelines.base import PipelineDenoiser, call_default, with_negatives


class PixArtDenoiser(PipelineDenoiser):
    """PixArtAlphaPipeline and PixArtSigmaPipeline.

    The network's learned variance is dropped. Images are made at exactly the height and width of the settings; the pipeline's
    resolution bins are not used. Captions are cleaned as the pipeline does it, if beautifulsoup4 and ftfy are installed.
    """

    network: ClassVar[str] = "transformer"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.size: Tensor | None = None
        self.ratio: Tensor | None = None
        if type(self.pipeline).__name__ == "PixArtAlphaPipeline" and self.config.sample_size == 128:
            self.size = torch.tensor([[self.height, self.width]]).float().to(self.device)
            self.ratio = torch.tensor([[self.height / self.width]]).float().to(self.device)

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        embeddings, mask, negative, negative_mask = self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=self.classifier_free,
            negative_prompt=self.sampler.negative_prompt,
            device=self.device,
            clean_caption=call_default(self.pipeline, "clean_caption") and is_bs4_available() and is_ftfy_available(),
            max_sequence_length=call_default(self.pipeline, "max_sequence_length"),
        )
        positive = {"embeddings": embeddings, "mask": mask}
        if not self.classifier_free:
            return positive
        return with_negatives(positive, {"embeddings": negative, "mask": negative_mask})

    def predict(self, x: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        size, ratio = (
            None if tensor is None else tensor.to(self.dtype).expand(len(x), -1) for tensor in (self.size, self.ratio)
        )
        output = self.module(
            x.to(self.dtype),
            encoder_hidden_states=embeddings["embeddings"],
            encoder_attention_mask=embeddings["mask"],
            timestep=t,
            added_cond_kwargs={"resolution": size, "aspect_ratio": ratio},
            return_dict=False,
        )[0]
        return output[:, : x.shape[1]]
