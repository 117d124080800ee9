"""Pictures that name what is in them, and a detector that reads their names: tests of judge and reward need no trained weights."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcm.builtin.verdict import Found


def at(name: str, x: float, y: float, colour: str | None = None, confidence: float = 1.0) -> Found:
    """Return a thing of side .25 around (x, y)."""
    return Found(name, colour, (x - 0.125, y - 0.125, x + 0.125, y + 0.125), confidence)


NOTHING, FOX, FOXES, RED_CAR, STAR_AND_OWL = range(5)
THERE: tuple[list[Found], ...] = (
    [],
    [at("fox", 0.5, 0.5)],
    [at("fox", 0.2, 0.5), at("fox", 0.8, 0.5)],
    [at("car", 0.5, 0.5, "red")],
    [at("star", 0.2, 0.5, "yellow"), at("owl", 0.8, 0.5)],
)
"""What is in the picture of each number."""


class Seeing:
    """A detector that finds what a picture's grey names."""

    def find(self, images: Tensor) -> list[list[Found]]:
        """Return the things in each of the images, which must be as detectors take them."""
        assert images.shape[1:] == (3, 64, 64)
        assert (images.dtype, images.device.type) == (torch.float32, "cpu")
        return [THERE[round(100 * float(image.mean()))] for image in images]


def pictures(*numbers: int, size: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a picture [3, size, size] for each number."""
    return torch.stack([torch.full((3, size, size), number / 100) for number in numbers]).to(dtype)
