"""What a frozen network sees in pictures: the features that a taste is learnt on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from rlcm.builtin import model_path
from rlcm.errors import ConfigError, MissingFileError
from rlcm.rewards.learned.clip import Network, resize_crop
from rlcm.rewards.learned.hub import Source
from rlcm.runs.weights import load_whole

BUILTIN = "builtin"
COLOURS = 4
"""Pixels a side of what the features know of colours."""
_SPARE = ("text_model.", "text_projection", "logit_scale", "logit_bias", "visual_projection", "text_")


class Encoder:
    """A vision transformer of transformers (CLIP, SigLIP, DINOv2, ViT): features of pictures, differentiable in them.

    The features are the mean of the last layer's tokens over the whole picture and over each of its quarters, each of length 1,
    so that what is where counts, too; and the colours of the picture at 4 x 4 pixels, which networks tend to overlook.

    Args:
        source: where it lies; None is the built-in model's CLIP.
        network: batch size, dtype and device.

    Raises:
        MissingFileError: if it is not there.
        ConfigError: if it is no vision transformer.
        WeightsError: if weights are damaged or missing.
    """

    def __init__(self, source: Source | None, network: Network) -> None:
        place = model_path("clip") if source is None else source.fetch()
        try:
            model: Any = load_whole(AutoModel, place, spare=_SPARE)
            self.mean, self.std = ((0.5,) * 3, (0.5,) * 3) if source is None else _pixels(place)
        except (OSError, ValueError, KeyError) as error:
            raise MissingFileError(f"{place} holds no model in transformers format ({error}).") from error
        model = getattr(model, "vision_model", model)
        side, patch = (getattr(model.config, name, None) for name in ("image_size", "patch_size"))
        if not isinstance(side, int) or not isinstance(patch, int):
            raise ConfigError(
                f"{place} is a {model.config.model_type}, which is no vision transformer; give a CLIP, SigLIP, DINOv2 or ViT."
            )
        self.side, self.rows = side, side // patch
        self.model = model.requires_grad_(False).eval().to(network.torch_device, network.torch_dtype)
        self.batch_size = network.batch_size

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features [B, D] of images [B, 3, h, w] in [0, 1], fp32 on the model's device; carries grad."""
        return torch.cat([self._see(part) for part in images.split(self.batch_size)])

    def _see(self, images: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        pixels = resize_crop(images.to(weight.device).float(), self.side)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        tokens = self.model(pixel_values=((pixels - mean) / std).to(weight.dtype)).last_hidden_state.float()
        grid = tokens[:, -self.rows * self.rows :].unflatten(1, (self.rows, self.rows)).permute(0, 3, 1, 2)
        parts = [F.adaptive_avg_pool2d(grid, size).flatten(2) for size in (1, 2)]
        seen = [F.normalize(column, dim=1) for part in parts for column in part.unbind(2)]
        return torch.cat([*seen, F.adaptive_avg_pool2d(pixels, COLOURS).flatten(1)], dim=1)

    @property
    def groups(self) -> tuple[int, int]:
        """How many features are of the network, and how many are colours."""
        return 5 * self.model.config.hidden_size, 3 * COLOURS**2


def _pixels(place: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from transformers import AutoImageProcessor  # slow to import, and the built-in model needs none

    processor = AutoImageProcessor.from_pretrained(place, use_fast=False)
    return tuple(processor.image_mean), tuple(processor.image_std)
