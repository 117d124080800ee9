"""One training of the study: on a voter's votes as `rlcm ui` does it, or on what the voter likes itself, and what came of it."""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.shared import results
from benchmarks.voting import oracles
from benchmarks.voting.oracles import ORACLES, Voter
from rlcm.builtin import WEIGHTS
from rlcm.builtin.judging import PromptJudge
from rlcm.builtin.prompts import prompt_set
from rlcm.pipelines import make_denoiser
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import pictures_of
from rlcm.runs.digests import of_files, of_source, of_value
from rlcm.sharing import tuned_pipeline
from rlcm.training import keeping
from rlcm.training.config import TrainConfig, load_config, parse_settings
from rlcm.training.evaluate import mean_interval
from rlcm.training.trainer import Trainer
from rlcm.ui.jobs import Jobs
from rlcm.ui.teaching import Teaching

DIRECT = "direct"
RUN = "taught"
LEARNT_EVERY = 8
"""Votes between two fits of the taste, as it is for choosing questions."""
_AT_ONCE = 45


@dataclass(frozen=True, slots=True)
class Plan:
    """What all trainings share."""

    votes: int
    votes_a_training: int
    rounds_a_training: int
    images: int
    """That are looked at, before and after: of the prompts of `tested`, in turn."""
    settings: tuple[str, ...] = ()
    """Of the training, KEY=VALUE over the package's default."""
    prompts: str = "world"
    tested: str = "world-unseen"


@dataclass(frozen=True, slots=True)
class Cell:
    """One training."""

    oracle: str
    source: str
    """`direct`: what the voter likes is the reward. Else votes, on questions that are chosen (`active`) or any (`random`)."""
    wrong: float
    """The share of wrong votes."""
    seed: int

    @property
    def name(self) -> str:
        """Of its file and folder."""
        return f"{self.oracle}-{self.source}-{round(100 * self.wrong)}-seed-{self.seed}"


class AtOnce(Jobs):
    """The page's trainings, without processes: each has ended when it was started. Reports that nobody reads are not drawn."""

    def start(self, config: TrainConfig) -> str:
        """Train."""
        with patch.object(keeping, "write_report"):
            Trainer(config).train()
        return config.name or ""

    def resume(self, name: str, *changes: str) -> None:
        """Go on training."""
        with patch.object(keeping, "write_report"):
            Trainer.resume(self.folder / name, changes).train()


def cells(names: Sequence[str], shares: Sequence[float], seeds: Sequence[int]) -> list[Cell]:
    """Return all trainings, in the order of what they tell, so that a study that is cut short has told most.

    Any questions are compared with chosen ones for the first of the oracles, without wrong votes.

    Args:
        names: of the oracles.
        shares: of wrong votes.
    """
    ends, between = dict.fromkeys((min(shares), max(shares))), [share for share in shares if min(shares) < share < max(shares)]

    def voted(some: Iterable[float]) -> list[Cell]:
        return [Cell(name, "active", share, seed) for share in some for seed in seeds for name in names]

    direct = [Cell(name, DIRECT, 0.0, seed) for seed in seeds for name in names]
    return direct + voted(ends) + [Cell(names[0], "random", 0.0, seed) for seed in seeds] + voted(between)


def measured(cell: Cell, plan: Plan, work: Path, *, whole_curve: bool) -> dict[str, Any]:
    """Return what came of a training; one that is finished, and was of the same plan and model, is not made again.

    Args:
        whole_curve: look after every training of some rounds, not after the last one alone.
    """
    file = work / f"{cell.name}.json"
    key = _key(plan, whole_curve)
    found = results.read_if_there(file)
    if found.get("key") == key:
        return found
    folder = work / cell.name
    shutil.rmtree(folder, ignore_errors=True)  # half of one
    started, computed = time.perf_counter(), time.process_time()
    base = _base(plan, work)
    # Of its own: the noise of a training is that of its seed, but questions are drawn from the process's.
    torch.manual_seed(zlib.crc32(cell.name.encode()))
    looks = []
    for votes, rounds, config in _trained(cell, plan, folder):
        if whole_curve or votes == plan.votes:
            looks.append({"votes": votes, "rounds": rounds} | _compared(base, _look(plan, config, folder / RUN), cell.oracle))
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - computed}
    found = {"key": key, **asdict(cell), "looks": looks, **spent}
    results.write(file, results.rounded(found))
    shutil.rmtree(folder, ignore_errors=True)
    return results.read(file)


def _trained(cell: Cell, plan: Plan, folder: Path) -> Iterator[tuple[int, int, TrainConfig]]:
    """Yield votes, rounds and configuration after each training of some rounds."""
    jobs = AtOnce(folder)
    base = load_config(None, [f"seed={cell.seed}", *plan.settings])
    teaching = Teaching(
        jobs, RUN, plan.prompts, base, choice="random" if cell.source == "random" else "active",
        votes_a_training=plan.votes_a_training, rounds_a_training=plan.rounds_a_training,
    )  # fmt: skip
    if cell.source == DIRECT:
        yield from _directly(cell, plan, teaching.config, jobs)
        return
    voter = Voter(ORACLES[cell.oracle], cell.wrong, cell.seed)
    rounds = 0
    for votes in range(1, plan.votes + 1):
        question = teaching.ask()
        teaching.vote(question.id, [voter.chooses(question.images)])
        if teaching.train():
            rounds += plan.rounds_a_training
            yield votes, rounds, teaching.config
        if votes % LEARNT_EVERY == 0 and votes < plan.votes:
            teaching.prepare()


def _directly(cell: Cell, plan: Plan, config: TrainConfig, jobs: Jobs) -> Iterator[tuple[int, int, TrainConfig]]:
    """Train as many rounds at the same moments, the taste replaced by what the voter likes."""
    others = [reward.model_dump() for reward in config.rewards[1:]]
    config = parse_settings(TrainConfig, config.model_dump() | {"rewards": [f"{oracles.__file__}:{cell.oracle}", *others]})
    for number in range(1, plan.votes // plan.votes_a_training + 1):
        rounds = number * plan.rounds_a_training
        if number == 1:
            jobs.start(config.model_copy(update={"run": config.run.model_copy(update={"rounds": rounds})}))
        else:
            jobs.resume(RUN, f"run.rounds={rounds}")
        yield number * plan.votes_a_training, rounds, config


def _base(plan: Plan, work: Path) -> dict[str, list[float]]:
    """Return what the base model draws, as `_look`; measured once."""
    file, key = work / "base.json", _key(plan, False)
    found = results.read_if_there(file)
    if found.get("key") != key:
        found = {"key": key, "look": _look(plan, load_config(None, list(plan.settings)), None)}
        results.write(file, found)
    look: dict[str, list[float]] = found["look"]
    return look


@torch.no_grad()
def _look(plan: Plan, config: TrainConfig, run: Path | None) -> dict[str, list[float]]:
    """Return the oracles' values of the fixed pictures, and "right": the held-out judge's answers, 1 or 0."""
    asked = prompt_set(plan.tested)
    asked = [asked[i % len(asked)] for i in range(plan.images)]
    prompts = [one["prompt"] for one in asked]
    denoiser = make_denoiser(tuned_pipeline(config, run), config.sampler, config.model)
    images = pictures_of(denoiser, prompts, [image_seed("voters", place) for place in range(plan.images)], _AT_ONCE)
    found = {name: oracle(images, prompts) for name, oracle in ORACLES.items()}
    return {
        name: values.tolist() for name, values in (found | {"right": PromptJudge()(images, prompts, asked)["right"]}).items()
    }


def _compared(base: dict[str, list[float]], look: dict[str, list[float]], oracle: str) -> dict[str, Any]:
    """Return means before and after, and the mean differences of the same prompts and noise, each with its 95 % interval."""
    said = {}
    for name, key in (("value", oracle), ("right", "right")):
        before, after = torch.tensor(base[key]), torch.tensor(look[key])
        said[name] = {"before": mean_interval(before), "after": mean_interval(after), "gain": mean_interval(after - before)}
    return said


def _key(plan: Plan, whole_curve: bool) -> str:
    """Return a digest of all that a training depends on, but for itself."""
    weights = {str(file): file for file in sorted(WEIGHTS.rglob("*.safetensors"))}
    return of_value([asdict(plan), whole_curve, of_source(Path(oracles.__file__)), sorted(of_files(weights).values())])
