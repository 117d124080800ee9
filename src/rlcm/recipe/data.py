"""The recipe's pictures: drawn anew for every update, by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlcm.builtin.renderer import Renderer
from rlcm.builtin.scenes import Thing, arrange, draw_asked
from rlcm.builtin.vocabulary import Asked

# Seeds fixed before anything was trained. What is drawn for one purpose is never drawn for another.
GENERATOR_SEED, REWARD_SEED, JUDGE_SEED, TEST_SEED = 1_000_000, 2_000_000, 3_000_000, 4_000_000


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures with what they show: images [B, 3, 64, 64] in [0, 1], and B each of what was asked and what is there."""

    images: Tensor
    asked: list[Asked]
    things: list[tuple[Thing, ...]]


class Pictures:
    """Draws batches of pictures.

    Args:
        seed: of the purpose that they are drawn for.
        held_out: False draws what a generator may see, True what it never sees, None all alike.
    """

    def __init__(self, font: Path, seed: int, held_out: bool | None) -> None:
        self._renderer, self._seed, self._held_out = Renderer(font), seed, held_out

    def batch(self, size: int, number: int, tags: dict[str, float] | None = None) -> Batch:
        """Return `size` pictures; the same `number` gives the same ones."""
        rng = np.random.default_rng([self._seed, number % 2**63])
        asked = [draw_asked(rng, self._held_out, tags) for _ in range(size)]
        things = [arrange(a, rng, self._held_out) for a in asked]
        seeds = rng.integers(2**62, size=size)
        arrays = np.stack([self._renderer.draw(t, int(s)) for t, s in zip(things, seeds, strict=True)])
        return Batch(torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255, asked, things)
