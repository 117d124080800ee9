"""Drawing a set of prompts from fixed seeds, and scoring what comes out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rlcm.pipelines import PipelineDenoiser
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import decode_images, sample_latents
from rlcm.processes.memory_retry import BatchSize
from rlcm.rewards import RewardMix
from rlcm.studies.evaluation.sets import Group
from rlcm.training.diversity import Features, diversity_of
from rlcm.training.evaluate import Judge, guard, mean_interval


@dataclass(slots=True)
class Drawn:
    """The images of a set, and what was said of them."""

    images: Tensor
    """[B, 3, h, w]; image i shows prompt i mod P, so that the first P are one of each."""
    prompts: list[str]
    seeds: list[int]
    rewards: dict[str, Tensor]
    """[B] by label, of every reward; NaN where one that may skip could not score."""
    judge: dict[str, Tensor]
    """[B] answers by question: 1, 0, or NaN where it is not asked."""
    images_per_second: float
    """Of sampling and decoding: the median batch of full size, after a first one that is not counted."""
    diversity: dict[str, float] = field(default_factory=dict)
    """How far apart pictures of one prompt are, as `rlcm.training.diversity.diversity_of` returns it."""

    def summary(self, base: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """Return means, each with the half-width of its 95 % interval over images.

        Args:
            base: the rewards of the same prompts and seeds without tuning; with them, `change` holds the mean difference of
                the pairs.
        """
        found: dict[str, Any] = {
            "images": len(self.prompts),
            "images_per_second": round(self.images_per_second, 2),
            "rewards": {label: mean_interval(values) for label, values in self.rewards.items()},
            "judge": {question: mean_interval(right) for question, right in self.judge.items()},
            "guard": guard(self.images) | self.diversity,
        }
        if base is not None:
            found["change"] = {
                label: mean_interval(values - base[label]) for label, values in self.rewards.items() if label in base
            }
        return found


def draw_set(
    denoiser: PipelineDenoiser,
    group: Group,
    rewards: RewardMix,
    judge: Judge | None,
    *,
    each: int,
    seed: int,
    sampling: BatchSize,
    clock: Callable[[], float] = time.perf_counter,
    features: Features | None = None,
) -> Drawn:
    """Return `each` images of every prompt of a set, scored; the same prompts and seeds give the same images every time.

    Args:
        denoiser: with the sampler to draw with.
        seed: of the set's noise; image i of a set has the same noise at every number of steps and with every model.
        sampling: images sampled at once; fewer from there on, where memory runs out.
        clock: gives the seconds that images a second are counted by.
        features: in which diversity is measured; without them it is in pixels.

    Raises:
        RewardError: as the rewards do.
        TrainingError: if memory runs out with a single image.
    """
    rows = [i % len(group.prompts) for i in range(each * len(group.prompts))]
    seeds = [image_seed(seed, "study", i) for i in range(len(rows))]
    conditioning = denoiser.encode(group.prompts)
    index = torch.tensor(rows)

    def draw(places: Tensor) -> Tensor:
        latents = sample_latents(
            denoiser, denoiser.table, conditioning.take(index[places]), [seeds[i] for i in places.tolist()]
        )
        return decode_images(denoiser, latents)

    def timed(places: Tensor) -> tuple[Tensor, float]:
        started = clock()
        drawn = draw(places)
        return drawn, clock() - started

    places = torch.arange(len(rows))
    sampling.fit(lambda: draw(places[: min(4, sampling.size)]))  # the first call allocates, compiles and fills caches
    batches = list(sampling.over(places, timed))
    images = torch.cat([drawn for drawn, _ in batches])
    prompts, metadata = _picked(group.prompts, rows), _picked(group.metadata, rows)
    raw = rewards.score_in_parts(images, prompts, metadata, sampling.size)
    judged = judge(images, prompts, metadata) if judge else {}
    speed = _images_per_second([(len(drawn), seconds) for drawn, seconds in batches], sampling.size)
    diversity = diversity_of(images, prompts, features or {})
    return Drawn(images, prompts, seeds, _with_failed(raw.parts, rewards, len(rows)), judged, speed, diversity)


def _images_per_second(batches: Sequence[tuple[int, float]], size: int) -> float:
    """Return the median of the largest batches that fit into `size`, to which memory may have brought it down."""
    largest = max(count for count, _ in batches if count <= size)
    return median(count / seconds for count, seconds in batches if count == largest)


def _with_failed(parts: Mapping[str, Tensor], rewards: RewardMix, count: int) -> dict[str, Tensor]:
    """Return scores with a NaN for every image by every reward that failed for all of them, and so has no scores."""
    answered = {label.partition("/")[0] for label in parts}
    failed = [part.label for part in rewards.parts if part.label not in answered]
    return {**parts, **{label: torch.full((count,), math.nan) for label in failed}}


def _picked(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [values[i] for i in rows]
