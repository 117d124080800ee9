"""Looking at the policy: the same prompts and seeds every time, scored, judged and laid out as a grid."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlcm.noise import image_seed
from rlcm.policy import Policy
from rlcm.rewards import RewardMix
from rlcm.rollout import decode_images, sample_latents
from rlcm.settings import Settings
from rlcm.transitions import TransitionTable
from rlcm.types import Conditioning

Judge = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
"""From images and prompts to named booleans [B]; NaN-free, see `rlcm.builtin.judging`."""


class EvaluationSettings(Settings):
    """A fixed set of prompts and seeds on which the base and the tuned model are compared."""

    images: int = Field(default=90, ge=2)
    """Images of the set; its prompts are taken in turn."""
    prompts: str | tuple[str, ...] | None = None
    """As `prompts`; left out, the prompts of the training, with other seeds."""
    seed: int = Field(default=20_240_404, ge=0)
    """Seed of the set's noise, apart from the run's."""
    every: int = Field(default=10, ge=0)
    """Rounds between evaluations; 0 evaluates before and after only."""
    grid: int = Field(default=16, ge=1)
    """Images of the set that are kept as pictures."""


@dataclass(slots=True)
class Evaluation:
    """What one look at the policy saw."""

    images: Tensor
    """[B, 3, h, w]."""
    prompts: list[str]
    seeds: list[int]
    rewards: dict[str, Tensor]
    """[B] "total" and every reward by label."""
    judge: dict[str, Tensor] | None
    """[B] booleans by question."""
    images_per_second: float
    """Of sampling and decoding."""

    def summary(self) -> dict[str, Any]:
        """Return means, each with the half-width of its 95 % interval."""
        return {
            "images": len(self.prompts),
            "reward": mean_interval(self.rewards["total"]),
            "rewards": {label: mean_interval(values) for label, values in self.rewards.items() if label != "total"},
            "judge": None if not self.judge else {key: mean_interval(value.float()) for key, value in self.judge.items()},
            "images_per_second": round(self.images_per_second, 2),
            "guard": guard(self.images, self.prompts),
        }


def mean_interval(values: Tensor) -> dict[str, float]:
    """Return the mean of [B] values and the half-width of its normal 95 % interval, ignoring NaN."""
    values = values[~values.isnan()].double()
    spread = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "ci95": 1.96 * spread / math.sqrt(max(len(values), 1))}


def guard(images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Return what tells a healthy picture from a hacked one.

    diversity       mean root-mean-square distance of two images of the same prompt (16x16 pixels, so that content counts)
    saturated       share of pixels whose channels are all below .02 or all above .98
    high_frequency  mean energy of what a 3x3 blur takes away
    """
    small = torch.nn.functional.interpolate(images, size=(16, 16), mode="area").flatten(1)
    distances = torch.cdist(small, small) / math.sqrt(small.shape[1])
    names: dict[str, int] = {}
    index = torch.tensor([names.setdefault(prompt, len(names)) for prompt in prompts])
    same = (index[:, None] == index[None]) & ~torch.eye(len(prompts), dtype=torch.bool)
    flat = ((images < 0.02).all(1) | (images > 0.98).all(1)).float().mean().item()
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1)
    rest = (images[..., 1:-1, 1:-1] - blurred).square().mean().item()
    result = {"saturated": flat, "high_frequency": rest}
    return result | ({"diversity": distances[same].mean().item()} if same.any() else {})


class Evaluator:
    """Draws the fixed set with a policy and scores it.

    Args:
        table: the sampler without final noise.
        batch_size: images sampled at once.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        conditioning: Conditioning,
        rewards: RewardMix,
        table: TransitionTable,
        judge: Judge | None,
        batch_size: int,
    ) -> None:
        self.conditioning, self.rewards, self.table, self.judge = conditioning, rewards, table, judge
        self.batch_size = batch_size
        index = [i % len(prompts) for i in range(settings.images)]
        self.index = torch.tensor(index)
        self.prompts, self.metadata = [prompts[i] for i in index], [metadata[i] for i in index]
        self.seeds = [image_seed(settings.seed, "evaluation", i) for i in range(settings.images)]

    def __call__(self, policy: Policy) -> Evaluation:
        """Return how the policy, with its averaged weights where it has them, does on the fixed set."""
        started = time.perf_counter()
        denoiser = policy.denoiser

        def seeds(rows: Tensor) -> list[int]:
            return [self.seeds[i] for i in rows.tolist()]

        with policy.averaged():
            parts = [
                decode_images(
                    denoiser, sample_latents(denoiser, self.table, self.conditioning.take(self.index[rows]), seeds(rows))
                )
                for rows in torch.arange(len(self.seeds)).split(self.batch_size)
            ]
        images = torch.cat(parts)
        seconds = time.perf_counter() - started
        raw = self.rewards.score(images, self.prompts, self.metadata)
        scores = self.rewards.mix(raw, update=False)
        judged = self.judge(images, self.prompts) if self.judge else None
        return Evaluation(
            images, self.prompts, self.seeds, {"total": scores.total, **scores.parts}, judged, len(images) / seconds
        )
