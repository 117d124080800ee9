"""Consistency models on pixels, with class labels in place of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlcm.errors import ConfigError
from rlcm.pipelines.base import PipelineDenoiser


class PixelDenoiser(PipelineDenoiser):
    """ConsistencyModelPipeline. A prompt is the number of a class; a model without classes ignores its prompts."""

    schedulers: ClassVar[tuple[str, ...]] = ("consistency",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        size = self.config.sample_size
        if (self.height, self.width) != (size, size):
            raise ConfigError(
                f"model.height={self.height}, model.width={self.width}: this pixel model makes {size} x {size} images only; "
                "leave both out."
            )

    @property
    def classifier_free(self) -> bool:
        return False

    def encode_batch(self, prompts: list[str]) -> dict[str, Tensor]:
        classes = self.config.num_class_embeds
        labels = [0 if classes is None else class_number(prompt, classes) for prompt in prompts]
        return {"labels": torch.tensor(labels, device=self.device)}

    def predict(self, x: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        labels = None if self.config.num_class_embeds is None else embeddings["labels"]
        return self.module(x.to(self.dtype), t, class_labels=labels, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        return latents.float() * 0.5 + 0.5


def class_number(prompt: str, classes: int) -> int:
    """Return the class that a prompt names.

    Raises:
        ConfigError: if it is no whole number from 0 to classes - 1.
    """
    if not prompt.strip().isdecimal() or int(prompt) >= classes:
        raise ConfigError(
            f"prompt {prompt!r} names no class of this model, which is conditioned on classes and not on text; "
            f"use numbers from 0 to {classes - 1}, one a line."
        )
    return int(prompt)
