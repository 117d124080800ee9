"""What simulated voters like: functions of the picture alone, which no prompt says and no judge looks at; and such a voter.

Each is a reward, too, so that a training may ask it directly: `rewards: [benchmarks/voting/oracles.py:warm]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FAINT = 0.15
"""What differs from the ground by less, in its most different channel, is ground: the grounds of the built-in world are shaded."""


def warm(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return how much more red than blue there is, mean of the whole picture: [B] in [-1, 1], of images [B, 3, h, w]."""
    return (images[:, 0] - images[:, 2]).mean((1, 2))


def low(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return how far down the centre of gravity is of what is not ground: [B], 0 at the top, 1 at the bottom, 0.5 for nothing."""
    things = _not_ground(images)
    rows = (torch.arange(images.shape[2], device=images.device) + 0.5) / images.shape[2]
    weight = things.sum((1, 2))
    return torch.where(weight > 0, (things.sum(2) * rows).sum(1) / weight.clamp_min(1e-12), 0.5)


def few(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return minus the share of the picture that is not ground: [B] in [-1, 0]."""
    return -(_not_ground(images) > 0).float().mean((1, 2))


def _not_ground(images: Tensor) -> Tensor:
    """Return how far each pixel is from the ground, [B, h, w]: from the median colour of the picture's border; 0 is ground."""
    top, bottom, left, right = images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]
    ground = torch.cat([top, bottom, left, right], dim=2).median(2).values[..., None, None]
    return ((images - ground).abs().amax(1) - FAINT).clamp_min(0)


ORACLES: dict[str, Callable[[Tensor, Sequence[str]], Tensor]] = {"warm": warm, "low": low, "few": few}
MEANINGS: dict[str, str] = {
    "warm": "a colour: more red than blue, mean of the picture",
    "low": "a position: the centre of gravity of what is not ground lies low",
    "few": "few objects: little of the picture is not ground",
}


class Voter:
    """Votes for the picture with the highest value, and now and then for another one.

    Args:
        oracle: what it likes.
        wrong: probability of a wrong vote, 0 to 1; each of the other pictures is as likely then.
        seed: of its errors.
    """

    def __init__(self, oracle: Callable[[Tensor, Sequence[str]], Tensor], wrong: float, seed: int) -> None:
        self.oracle, self.wrong = oracle, wrong
        self._errors = torch.Generator().manual_seed(seed)

    def chooses(self, images: Tensor) -> int:
        """Return the place of the picture it votes for, of images [K, 3, h, w], K >= 2."""
        best = int(self.oracle(images, [""] * len(images)).argmax())
        errs, other = torch.rand(2, generator=self._errors).tolist()
        return (best + 1 + int(other * (len(images) - 1))) % len(images) if errs < self.wrong else best
