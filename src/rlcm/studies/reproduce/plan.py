"""What is run: tasks, methods and variants as changes of a run's configuration. Each run's folder holds the whole of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlcm.settings import Changes, merge
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.prompts import load_prompts
from rlcm.training.run_settings import RunSettings

EXPERIMENTS: dict[str, str] = {
    "curves": "reward over time, reward queries and network calls, of DDPO, RLCM as published and this package's default",
    "inference": "reward against images per second, from 1 to 16 steps, and 5 to 50 for DDPO, of the models of `curves`",
    "generalisation": "what a model tuned on some prompts does on others, and on unseen combinations",
    "ablations": "steps, normalisation and clip range of RLCM as published",
    "learning-rates": "DDPO and RLCM as published with larger learning rates, one run each",
    "last-step": "variance of the gradient with the last step handled as published and correctly",
}
"""What can be asked for by --only."""


DDPO, PUBLISHED, DEFAULT = "ddpo", "rlcm-published", "rlcm"


@dataclass(frozen=True, slots=True)
class Task:
    """What is learnt, and the paper's settings for it."""

    reward: str
    prompts: str | list[str]
    published: Changes
    """As configs/lcm-dreamshaper-v7-*.yaml, in fewer images a round where a round would take a fifth of an hour."""
    steps: int
    """H of the paper for this task."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """How much of the budget a method gets for its curves where that is not its share of `SHARES`."""


def _published(lr: float, batch: int, minibatches: int, buffer: int, rank: int = 16, alpha: float = 32) -> Changes:
    return {
        "lora": {"rank": rank, "alpha": alpha},
        "rollout": {"batch_size": batch, "branches": 1},
        "algorithm": {
            "kl_coefficient": 0.0,
            "clip_range": 1e-4, "advantage": "prompt_statistics", "stat_buffer_size": buffer, "stat_min_count": 16,
            "minibatches": minibatches,
        },
        # Constant: a run ends by its time, and the published decay ends at two thirds.
        "optimizer": {"name": "adam", "lr": lr, "schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 5.0},
    }  # fmt: skip


def _some_prompts() -> list[str]:
    """Return 48 prompts, eight of each kind: of all 187 a run would draw each too seldom for statistics of its own."""
    return list(load_prompts("world").prompts[:48])


TASKS: dict[str, Task] = {
    "compressibility": Task("jpeg_compressibility", "world-objects", _published(1e-4, 160, 10, 16), 8),
    "incompressibility": Task("jpeg_incompressibility", "world-objects", _published(1e-4, 160, 10, 16), 8),
    "alignment": Task(
        "alignment", _some_prompts(), _published(4e-4, 192, 6, 32), 16, {PUBLISHED: 0.6}
    ),  # .2 was not enough to come to what DDPO reaches
    "aesthetic": Task("aesthetic", "world-objects", _published(1e-4, 320, 10, 32, 8, 8), 8),
}
DEFAULT_TASKS = ("compressibility", "incompressibility", "alignment")
"""`aesthetic` needs weights that are not part of the package."""

SHARES = {DDPO: 1.0, PUBLISHED: 0.2, DEFAULT: 0.15}
"""How much of the budget a run of each method gets, where its task does not say otherwise: DDPO all of it."""
ABLATION_SHARE, GENERALISATION_SHARE = 0.1, 0.15
RATE_FACTORS, RATE_SHARE, RATE_SEED = (1, 3, 10, 30), 1 / 3, 1000
"""Learning rates, times the published one, how much of its method's minutes each gets, and the seed, which no curve has: they
are a search, not a result."""

VARIANTS: dict[str, Changes] = {
    "as published": {},
    "2 steps": {"sampler": {"steps": 2}},
    "4 steps": {"sampler": {"steps": 4}},
    "16 steps": {"sampler": {"steps": 16}},
    "batch normalisation": {"algorithm": {"advantage": "batch"}},
    "clip range 1e-5": {"algorithm": {"clip_range": 1e-5}},
    "clip range 1e-3": {"algorithm": {"clip_range": 1e-3}},
    "no clipping": {"algorithm": {"clip_range": 1e3}},
}
"""RLCM as published with one setting changed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training run."""

    experiment: str
    task: str
    method: str
    seed: int
    values: Changes = field(repr=False)

    def folder(self, output: Path) -> Path:
        """Return where the run goes."""
        return output / self.experiment / self.task / f"{self.method.replace(' ', '-')}-{self.seed}"

    def config(self, output: Path) -> TrainConfig:
        """Return the run's configuration."""
        folder = self.folder(output)
        own = {"name": folder.name, "output": str(folder.parent), "seed": self.seed}
        return parse_settings(TrainConfig, merge(self.values, own))


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is run."""

    output: Path
    only: tuple[str, ...] = tuple(EXPERIMENTS)
    tasks: tuple[str, ...] = DEFAULT_TASKS
    methods: tuple[str, ...] = tuple(SHARES)
    seeds: int = 3
    budget: float = 60.0
    """Minutes of training that a run of DDPO gets; others get the share of their method."""
    images: int = 180
    """Images of an evaluation."""
    threads: int | None = None
    """CPU threads; None leaves it to torch."""
    clock: Literal["wall", "cpu"] = "wall"
    """What the minutes are of, as `run.clock`."""

    def jobs(self) -> Iterator[Job]:
        """Return the training runs, one seed of everything before the next."""
        for seed in range(self.seeds):
            for task in self.tasks:
                for method in self.methods if {"curves", "inference"} & set(self.only) else ():
                    yield self._job(
                        "curves", task, method, seed, TASKS[task].shares.get(method, SHARES[method]), values_of(task, method)
                    )
                for method in self.methods if "generalisation" in self.only else ():
                    if method != DDPO:
                        values = merge(values_of(task, method), {"prompts": "world"})
                        yield self._job("generalisation", task, method, seed, GENERALISATION_SHARE, values)
                for variant, changes in VARIANTS.items() if "ablations" in self.only else ():
                    values = merge(values_of(task, PUBLISHED), changes)
                    yield self._job("ablations", task, variant, seed, ABLATION_SHARE, values)
        for task in self.tasks if "learning-rates" in self.only else ():
            for method in self.methods:
                for factor in RATE_FACTORS if method != DEFAULT else ():
                    values = values_of(task, method)
                    faster = merge(values, {"optimizer": {"lr": factor * values["optimizer"]["lr"]}})
                    share = RATE_SHARE * SHARES[method]
                    yield self._job("learning-rates", task, f"{method} x{factor}", RATE_SEED, share, faster)

    def _job(self, experiment: str, task: str, method: str, seed: int, share: float, values: Changes) -> Job:
        run = {"time_limit_minutes": share * self.budget, "clock": self.clock}
        limit = {"run": run, "evaluation": {"images": self.images}}
        return Job(experiment, task, method, seed, merge(values, limit))


def values_of(task: str, method: str) -> dict[str, Any]:
    """Return the configuration of a method on a task as nested values, before defaults are filled in.

    Raises:
        KeyError: if there is no such task or method.
    """
    goal = TASKS[task]
    common = {
        "prompts": goal.prompts,
        "rewards": [goal.reward],
        "evaluation": {"every": 3, "grid": 24},
        # The time limit ends a run, not its number of rounds.
        "run": {"rounds": 100_000, "tracker": "none", "save_every": 20, "keep_last": 1},
    }
    if method == DEFAULT:
        # What `rlcm train` does without a configuration, whatever that is in this version, with its own number of rounds.
        return merge(common, {"run": {"rounds": RunSettings().rounds}})
    if method == PUBLISHED:
        return merge(common, goal.published, {"sampler": {"steps": goal.steps, "guidance": 3.0}, "evaluation": {"every": 4}})
    if method == DDPO:
        teacher = {
            "model": {"path": "builtin-teacher"},
            # Guidance 3, where the teacher is best, in place of the paper's 5.
            "sampler": {"scheduler": "ddim", "eta": 1.0, "steps": 50, "guidance": 3.0},
            "evaluation": {"every": 4},
            "run": {"save_every": 1},
        }
        return merge(common, goal.published, teacher)
    raise KeyError(method)
