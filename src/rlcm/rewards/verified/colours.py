"""The colour of an object, by CLIP's words for what is in its box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rlcm.rewards.learned.clip import ClipEncoder, resize_crop
from rlcm.rewards.verified.verdict import Found

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""The colours that GenEval distinguishes."""


class ClipColours:
    """Names the colour of objects: of some words the one that, with the object's class, fits its crop best.

    Ghosh et al. 2023 (arXiv:2310.11513), section 3, but without a mask of the object: the crop keeps its surroundings.

    Args:
        encoder: a CLIP model.
        colours: the words to choose from.
    """

    def __init__(self, encoder: ClipEncoder, colours: Sequence[str]) -> None:
        self.encoder, self.colours = encoder, list(colours)
        self.side: int = encoder.model.config.vision_config.image_size

    @torch.no_grad()
    def __call__(self, image: Tensor, name: str, objects: Sequence[Found]) -> list[str]:
        """Return the colours of objects of one class in an image [3, h, w] in [0, 1]."""
        if not objects:
            return []
        crops = torch.cat([resize_crop(_middle(image, found), self.side) for found in objects])
        fits = self.encoder.images(crops) @ self._words(name).T
        return [self.colours[index] for index in fits.argmax(1).tolist()]

    def _words(self, name: str) -> Tensor:
        """Return one unit vector a colour [C, D]: the mean of three ways to say it."""
        ways = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
        rows = [self.encoder.texts([way.format(colour, name) for way in ways]).mean(0) for colour in self.colours]
        return F.normalize(torch.stack(rows), dim=-1)


def _middle(image: Tensor, found: Found) -> Tensor:
    """Return the largest square in the middle of a box, which is what CLIP sees of it, as [1, 3, s, s]."""
    height, width = image.shape[-2:]
    left, top = min(max(int(found.box[0]), 0), width - 1), min(max(int(found.box[1]), 0), height - 1)
    right, bottom = min(max(round(found.box[2]), left + 1), width), min(max(round(found.box[3]), top + 1), height)
    side = min(right - left, bottom - top)
    left, top = left + (right - left - side) // 2, top + (bottom - top - side) // 2
    return image[None, :, top : top + side, left : left + side].float()
