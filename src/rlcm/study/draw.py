"""Drawing a set of prompts from fixed seeds, and scoring what comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rlcm.evaluate import Judge, guard, mean_interval
from rlcm.noise import image_seed
from rlcm.pipelines import PipelineDenoiser
from rlcm.rewards import RewardMix
from rlcm.rollout import decode_images, sample_latents
from rlcm.study.sets import Group


@dataclass(slots=True)
class Drawn:
    """The images of a set, and what was said of them."""

    images: Tensor
    """[B, 3, h, w]; image i shows prompt i mod P, so that the first P are one of each."""
    prompts: list[str]
    seeds: list[int]
    rewards: dict[str, Tensor]
    """[B] by label; NaN where a reward that may skip could not score."""
    judge: dict[str, Tensor]
    """[B] booleans by question."""
    images_per_second: float
    """Of sampling and decoding: the median batch, after a first one that is not counted."""

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
            "judge": {question: mean_interval(right.float()) for question, right in self.judge.items()},
            "guard": guard(self.images, self.prompts),
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
    batch_size: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Drawn:
    """Return `each` images of every prompt of a set, scored; the same prompts and seeds give the same images every time.

    Args:
        denoiser: with the sampler to draw with.
        seed: of the set's noise; image i of a set has the same noise at every number of steps and with every model.
        batch_size: images sampled at once.
        clock: gives the seconds that images a second are counted by.

    Raises:
        RewardError: as the rewards do.
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

    batches = torch.arange(len(rows)).split(batch_size)
    draw(batches[0][:4])  # the first call allocates, compiles and fills caches
    parts, rates = [], []
    for batch in batches:
        started = clock()
        parts.append(draw(batch))
        rates.append(len(batch) / (clock() - started))
    images = torch.cat(parts)
    prompts, metadata = _picked(group.prompts, rows), _picked(group.metadata, rows)
    raw = rewards.score_in_parts(images, prompts, metadata, batch_size)
    judged = judge(images, prompts) if judge else {}
    return Drawn(images, prompts, seeds, raw.parts, judged, median(rates))


def _picked(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [values[i] for i in rows]
