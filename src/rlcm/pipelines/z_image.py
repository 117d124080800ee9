"""Z-Image: a single-stream flow-matching transformer that is given lists, and answers with the velocity's opposite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rlcm.pipelines.base import call_default
from rlcm.pipelines.flow import FlowDenoiser, padded


class ZImageDenoiser(FlowDenoiser):
    """ZImagePipeline: Z-Image-Turbo, and Z-Image with classifier-free guidance above 0.

    Its network's time runs from noise (0) to the image (1), and its output points the same way.
    """

    kind: ClassVar[str] = "ZImagePipeline"
    sign: ClassVar[float] = -1.0
    unguided: ClassVar[float] = 0.0

    @classmethod
    def levels(cls, steps: int) -> list[float]:
        return list(cls.rule("get_default_z_image_sigmas")(steps))  # rounded otherwise than the others'

    def encode_texts(self, texts: list[str]) -> dict[str, Tensor]:
        # The pipeline writes its template into the list that it is given.
        rows, _ = self.pipeline.encode_prompt(
            list(texts),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=call_default(self.pipeline, "max_sequence_length"),
        )
        return padded(rows)

    def time(self, t: Tensor) -> Tensor:
        return (1000 - t) / 1000

    def call(self, x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        images = self.module(list(x.unsqueeze(2).unbind()), time, self.texts(embeddings), return_dict=False)[0]
        return torch.stack(list(images)).squeeze(2)

    def texts(self, embeddings: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the embeddings of each prompt without its padding."""
        lengths = embeddings["mask"].sum(1).tolist()
        return [row[:length] for row, length in zip(embeddings["embeddings"], lengths, strict=True)]
