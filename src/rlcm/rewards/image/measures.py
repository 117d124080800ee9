"""Rewards of the pixels alone, without a model; all differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luma of ITU-R BT.601."""


def luma(images: Tensor) -> Tensor:
    """Return the luma [B, h, w] of images [B, 3, h, w], of the same range."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))


class Colourfulness:
    """How colourful a picture is; about 0 for grey ones, 15 slightly, 45 averagely, 110 extremely colourful.

        M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2),   rg = R - G,  yb = (R + G) / 2 - B

    on the scale 0 .. 255. Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images", eq. for M-hat(3).
    """

    differentiable = True
    """Gradients flow through it."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return M [B] of images [B, 3, h, w] in [0, 1]; the gradient at exactly grey pictures is 0."""
        red, green, blue = (255 * images.float()).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1).flatten(2)
        mean = opponents.mean(2)
        deviation = opponents - mean[..., None]
        # vector_norm, not sqrt: its gradient at 0 is 0 instead of NaN.
        spread = torch.linalg.vector_norm(deviation.flatten(1), dim=1) / opponents.shape[2] ** 0.5
        return spread + 0.3 * torch.linalg.vector_norm(mean, dim=1)


class Sharpness:
    """The variance of the Laplacian of the luma, on the scale 0 .. 255: below about 100 photographs look blurred.

    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy". The Laplacian is the five-point one, with
    borders mirrored, as OpenCV computes it.
    """

    differentiable = True
    """Gradients flow through it."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the variance [B] of images [B, 3, h, w] in [0, 1], sides at least 2."""
        grey = F.pad(luma(255 * images.float())[:, None], (1, 1, 1, 1), mode="reflect")
        kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
        return F.conv2d(grey, kernel[None, None]).flatten(1).var(dim=1, unbiased=False)


class Brightness:
    """Minus the distance of the mean luma from a target, in [-1, 0]: r(x) = -|mean luma(x) - target|.

    Args:
        target: the wanted mean luma, 0 (black) to 1 (white).

    Raises:
        ValueError: if the target is out of range.
    """

    differentiable = True
    """Gradients flow through it."""

    def __init__(self, *, target: float = 0.5) -> None:
        if not 0 <= target <= 1:
            raise ValueError(f"target={target} is not in 0 .. 1.")
        self.target = target

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the reward [B] of images [B, 3, h, w] in [0, 1]."""
        return -(luma(images.float()).mean((1, 2)) - self.target).abs()
