"""Slightly changed views of pictures, for a detector that is asked for a gradient.

A generator that climbs along one network's gradient finds patterns that this network likes and nobody else. Such a pattern does not
survive a shift, a blur and noise; a thing does. The mean over such views is therefore harder to fool. In adversarial attacks this is
known as expectation over transformations (Athalye et al. 2018, arXiv:1707.07397).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_VIEWS = 32
REACH = 2.0
"""How far a view is shifted, in pixels of 64."""
NOISE = 0.04
"""Standard deviation of a noisy view's noise; pictures are in [0, 1]."""
CONTRAST = 0.15
"""How much flatter or steeper a view's brightness may be."""


def views(images: Tensor, count: int) -> list[Tensor]:
    """Return `count` views of images [B, 3, h, w] in [0, 1]: the images themselves, then shifted ones, blurred and noisy in turn.

    The same images always give the same views, and gradients pass through all of them.
    """
    return [images, *(_view(images, number, count - 1) for number in range(count - 1))]


def _view(images: Tensor, number: int, count: int) -> Tensor:
    angle = 2 * math.pi * number / count
    reach = round(REACH * images.shape[-1] / 64) or 1
    dx, dy = round(reach * math.cos(angle)), round(reach * math.sin(angle))
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    shifted = padded[..., reach + dy : padded.shape[-2] - reach + dy, reach + dx : padded.shape[-1] - reach + dx]
    if number % 2:
        shifted = F.avg_pool2d(F.pad(shifted, (0, 1, 0, 1), mode="replicate"), 2, stride=1)
    else:
        noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(number))
        shifted = shifted + NOISE * noise.to(images)
    steeper = 1 + CONTRAST * (1 if number % 4 < 2 else -1)
    return ((shifted - 0.5) * steeper + 0.5).clamp(0, 1)
