"""Evaluations of the policy: the same prompts and seeds every time, scored, judged and laid out as a grid."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlcm.errors import RewardError
from rlcm.policy.noise import image_seed
from rlcm.policy.policy import Policy
from rlcm.policy.rollout import decode_images, path_divergence, sample_latents
from rlcm.processes.distributed import World
from rlcm.processes.memory_retry import BatchSize
from rlcm.rewards import RawScores, RewardMix
from rlcm.rewards.settings import OtherRewards
from rlcm.settings import Settings
from rlcm.training.diversity import Features, diversity_of
from rlcm.types import Conditioning, TransitionTable

SIBLINGS = 4
"""Pictures of a prompt that are drawn for diversity alone."""

Judge = Callable[[Tensor, Sequence[str], Sequence[Mapping[str, Any]]], dict[str, Tensor]]
"""From images, prompts and metadata to answers [B] by question: 1, 0 or NaN where it is not asked; see `rlcm.builtin.judging`."""


class EvaluationSettings(Settings):
    """A fixed set of prompts and seeds on which the base and the tuned model are compared."""

    images: int = Field(default=180, ge=2, le=1_000_000)
    """Images of the set; its prompts are taken in turn."""
    diversity_images: int = Field(default=32, ge=0, le=1_000_000)
    """Images on which the KL divergence to the base model is measured. Where no prompt of the set comes twice, so many more are drawn,
    four of a prompt, and not scored: diversity is measured on them."""
    prompts: str | tuple[str, ...] | None = None
    """As `prompts`; left out, the prompts of the training, with other seeds."""
    seed: int = Field(default=20_240_404, ge=0, lt=2**63)
    """Seed of the set's noise, apart from the run's."""
    every: int = Field(default=15, ge=0, le=1_000_000_000)
    """Rounds between evaluations; 0 evaluates before and after only."""
    grid: int = Field(default=24, ge=1, le=1_000_000)
    """Images of the set that are kept as pictures."""
    held_out: OtherRewards = ()
    """Rewards that are looked at and never trained on, as `rewards`: they tell a gain from a trick."""
    best: str = "reward"
    """Figure by which the best weights are kept in `best/`: `reward`, `rewards.LABEL`, `held_out.LABEL`, `judge.QUESTION` or
    `guard.NAME`; with a minus in front where less is better."""
    patience: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Stop after this many evaluations without a new best; left out, never."""
    least: dict[str, float] = Field(default_factory=dict)
    """Stop once a figure is below this share of what it was before training, such as `{judge.right: 0.9}`."""
    final: Literal["last", "best"] = "last"
    """Which weights become the run's result in `final/`."""

    def times(self, rounds: int) -> int:
        """Return how many evaluations a run of so many rounds has: before, between and after."""
        return 2 + ((rounds - 1) // self.every if self.every else 0)

    @property
    def drawn(self) -> int:
        """The pictures that an evaluation takes at most: those of diversity are drawn once for it, and twice for the KL divergence."""
        return self.images + 3 * self.diversity_images


@dataclass(slots=True)
class Evaluation:
    """What one evaluation found."""

    images: Tensor
    """[B, 3, h, w]."""
    prompts: list[str]
    seeds: list[int]
    rewards: dict[str, Tensor]
    """[B] "total" and every reward by label."""
    judge: dict[str, Tensor] | None
    """[B] answers by question: 1, 0, or NaN where it is not asked."""
    images_per_second: float
    """Of sampling and decoding."""
    held_out: dict[str, Tensor] = field(default_factory=dict)
    """[B] rewards that are never trained on, by label."""
    diversity: dict[str, float] = field(default_factory=dict)
    """How far apart pictures of one prompt are, as `rlcm.training.diversity.diversity_of` returns it."""
    kl: Tensor | None = None
    """[b] of the policy's path from the base model's, nats, for some of the images; None where it was not measured."""

    def summary(self) -> dict[str, Any]:
        """Return means, each with the half-width of its 95 % interval."""
        return {
            "images": len(self.prompts),
            "reward": mean_interval(self.rewards["total"]),
            "rewards": {label: mean_interval(values) for label, values in self.rewards.items() if label != "total"},
            "held_out": {label: mean_interval(values) for label, values in self.held_out.items()},
            "judge": None if not self.judge else {key: mean_interval(value) for key, value in self.judge.items()},
            "images_per_second": round(self.images_per_second, 2),
            "guard": guard(self.images) | self.diversity,
        } | ({} if self.kl is None else {"kl": mean_interval(self.kl)})

    def each(self) -> dict[str, list[float | None]]:
        """Return what every image was worth, in six digits: by the names of `rlcm.training.watch.metric_value`."""
        groups = {"rewards": self.rewards, "held_out": self.held_out, "judge": self.judge or {}}
        named = {f"{group}.{key}": values for group, found in groups.items() for key, values in found.items()}
        named["reward"] = named.pop("rewards.total")
        return {
            name: [None if math.isnan(value) else float(f"{value:.6g}") for value in values.tolist()]
            for name, values in named.items()
        }

    def change(self, before: Mapping[str, Sequence[float | None]]) -> dict[str, dict[str, float]]:
        """Return the mean differences from an earlier evaluation of the same prompts and seeds, each with its 95 % interval.

        What prompts and noise have in common cancels in the differences, so these intervals are narrower than those of the means.

        Args:
            before: as `each` of the earlier one returned it.
        """
        found = {}
        for name, values in self.each().items():
            if len(earlier := before.get(name, ())) == len(values):
                pairs = torch.tensor([[math.nan if one is None else one for one in side] for side in (earlier, values)])
                if not (difference := pairs[1].double() - pairs[0].double()).isnan().all():
                    found[name] = mean_interval(difference)
        return found


def mean_interval(values: Tensor) -> dict[str, float]:
    """Return the mean of [B] values and the half-width of its normal 95 % interval, ignoring NaN."""
    values = values[~values.isnan()].double()
    spread = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "ci95": 1.96 * spread / math.sqrt(max(len(values), 1))}


GUARD = ("saturated", "near_black", "near_white", "high_frequency")
"""Names of the figures of `guard`."""


def guard(images: Tensor) -> dict[str, float]:
    """Return what tells healthy pictures from hacked ones; how far apart they are is a matter of `rlcm.training.diversity`.

    saturated       share of pixels whose channels are all below .02 or all above .98
    near_black      share of images whose mean is below .05
    near_white      share of images whose mean is above .95
    high_frequency  mean energy of what a 3x3 blur takes away
    """
    flat = ((images < 0.02).all(1) | (images > 0.98).all(1)).float().mean().item()
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1)
    rest = (images[..., 1:-1, 1:-1] - blurred).square().mean().item()
    means = images.flatten(1).mean(1)
    black, white = (means < 0.05).float().mean().item(), (means > 0.95).float().mean().item()
    return dict(zip(GUARD, (flat, black, white, rest), strict=True))


class Evaluator:
    """Draws the fixed set with a policy and scores it.

    Args:
        table: the sampler without final noise.
        batch_size: images sampled at once.
        held_out: rewards that are looked at and never trained on.
        features: in which diversity is measured; without them it is in pixels.
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
        held_out: RewardMix | None = None,
        features: Features | None = None,
    ) -> None:
        self.conditioning, self.rewards, self.table, self.judge = conditioning, rewards, table, judge
        self.held_out, self.features = held_out, features or {}
        self.sampling = BatchSize(batch_size, "rollout.sample_batch_size")
        index = [i % len(prompts) for i in range(settings.images)]
        self.prompts, self.metadata = [prompts[i] for i in index], [metadata[i] for i in index]
        self.seeds = [image_seed(settings.seed, "evaluation", i) for i in range(settings.images)]
        self._measured = settings.diversity_images
        more = self._measured if len(set(self.prompts)) == len(self.prompts) else 0
        asked = max(1, min(more // SIBLINGS, len(index)))  # prompts, evenly spaced through the set
        siblings = [index[(i % asked) * len(index) // asked] for i in range(more)]
        self.sibling_prompts = [prompts[i] for i in siblings]
        self._rows = torch.tensor(index + siblings)
        self._seeds = self.seeds + [image_seed(settings.seed, "siblings", i) for i in range(more)]

    def __call__(self, policy: Policy, world: World | None = None) -> Evaluation:
        """Return how the policy, with its averaged weights where it has them, does on the fixed set.

        Args:
            world: processes that share the work; all of them get the whole answer. Left out, this process does everything.
        """
        started = time.perf_counter()
        world = world or World(alone=True)
        mine, played = world.rows(len(self.seeds))
        with world.together():
            with policy.averaged():
                drawn = torch.cat(list(self.sampling.over(played, lambda rows: self._draw(policy, rows))))
            seconds = time.perf_counter() - started
            index = played.tolist()
            asked = drawn, [self.prompts[i] for i in index], [self.metadata[i] for i in index]
            raw = self.rewards.score_in_parts(*asked, self.sampling.size)
            others = self.held_out.score_in_parts(*asked, self.sampling.size) if self.held_out else None
        images = world.gather_rows(drawn[: len(mine)])
        held_out = gather_scores(world, [others], len(mine)).parts if others else {}
        scores = self.rewards.look(gather_scores(world, [raw], len(mine)))
        judged = self.judge(images, self.prompts, self.metadata) if self.judge else None
        rewards = {"total": scores.total, **scores.parts}
        diversity, kl = self._diversity(policy, world, images), self._kl(policy, world)
        return Evaluation(images, self.prompts, self.seeds, rewards, judged, len(images) / seconds, held_out, diversity, kl)

    def _diversity(self, policy: Policy, world: World, images: Tensor) -> dict[str, float]:
        """Return how far apart pictures of one prompt are: of the set, or of further ones where no prompt comes twice in it."""
        if not self.sibling_prompts:
            return diversity_of(images, self.prompts, self.features)
        mine, played = world.rows(len(self.sibling_prompts))
        with world.together(), policy.averaged():
            drawn = torch.cat(list(self.sampling.over(played + len(self.seeds), lambda rows: self._draw(policy, rows))))
        return diversity_of(world.gather_rows(drawn[: len(mine)]), self.sibling_prompts, self.features)

    def _kl(self, policy: Policy, world: World) -> Tensor | None:
        """Return the divergence of the policy's path from the base model's [b], for the first images of the set."""
        count = min(self._measured, len(self.seeds))
        if not count or not self.table.std.any():
            return None
        mine, played = world.rows(count)
        with world.together(), policy.averaged():
            parts = self.sampling.over(
                played,
                lambda rows: path_divergence(policy, self.table, self.conditioning.take(self._rows[rows]), self._of(rows)),
            )
            found = torch.cat(list(parts))
        return world.gather_rows(found[: len(mine)])

    def _of(self, rows: Tensor) -> list[int]:
        return [self._seeds[i] for i in rows.tolist()]

    def _draw(self, policy: Policy, rows: Tensor) -> Tensor:
        """Return the images of the given rows: of the set, or of the further ones behind them."""
        denoiser, conditioning = policy.denoiser, self.conditioning.take(self._rows[rows])
        return decode_images(denoiser, sample_latents(denoiser, self.table, conditioning, self._of(rows)))


def gather_scores(world: World, answers: Sequence[RawScores], count: int) -> RawScores:
    """Return the scores of all processes: the first `count` of each process's answers, joined, in the order of ranks."""
    with world.together():
        raw = RawScores.cat(answers)
    # A process all of whose images were dropped may not know what the rewards are made of.
    labels = list(dict.fromkeys(label for names in world.gather(list(raw.parts)) for label in names))
    missing = [label for label in labels if label not in raw.parts]
    with world.together():
        if missing and raw.valid.any():
            raise RewardError(f"the reward component {missing[0]} is in some batches and not in others.")
    blank = torch.full((len(raw.valid),), math.nan)
    parts = {label: world.gather_rows(raw.parts.get(label, blank)[:count]) for label in labels}
    failures = [text for texts in world.gather(raw.failures) for text in texts]
    return RawScores(parts, world.gather_rows(raw.valid[:count]), failures)
