"""Doing the work: train what is missing, look at what is trained, have the results collected.

An interrupted call goes on where it was, and several calls at once share the work.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rlcm.errors import RewardError, RunDirectoryError, TrainingError
from rlcm.rewards import RewardSettings
from rlcm.runs.locks import take_lock
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_json
from rlcm.settings import merge
from rlcm.studies.evaluation import StudySettings, prompt_sets, study
from rlcm.studies.reproduce.plan import DDPO, PUBLISHED, Job, Plan, values_of
from rlcm.studies.reproduce.results import (
    FAILED,
    collect,
    config_of,
    has_failed,
    images_of_an_estimate,
    is_finished,
    last_steps,
    own_folder,
)
from rlcm.studies.reproduce.variance import gradient_variance
from rlcm.training.config import TrainConfig
from rlcm.training.fitting import sampled_at_once
from rlcm.training.run_config import run_config
from rlcm.training.trainer import Trainer, Watcher

STEPS = {"few": (1, 2, 4, 8, 16), "many": (5, 10, 25, 50)}


class Lines:
    """Prints a line now and then: which round, how much of the time is over, the reward."""

    def __init__(self, note: Callable[[str], None], every_seconds: float = 30.0) -> None:
        self.note = note
        self.minutes = 0.0
        self._every, self._last = every_seconds, float("-inf")

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        """Take a finished round's metrics."""
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self.note(
                f"  round {metrics['round']:.0f}, {metrics['seconds'] / 60:.1f} of {self.minutes:.1f} min, "
                f"reward {metrics['reward']:.4g}"
            )


def reproduce(plan: Plan, command: str, note: Callable[[str], None]) -> bool:
    """Run the plan, write results.json and a page for every task into its folder; False after an interrupt.

    Args:
        command: what the user typed, for the results.
        note: is told what begins and how far it is.

    Raises:
        UsageError: if the folder is a run, or has a results.json of something else.
        RunDirectoryError: if a run with other settings is where one of the plan belongs.
    """
    own_folder(plan.output).require()
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    with disk_errors(plan.output):
        plan.output.mkdir(parents=True, exist_ok=True)
    jobs, watcher, elsewhere = list(plan.jobs()), Lines(note), 0
    for place, job in enumerate(jobs, 1):
        folder = job.folder(plan.output)
        with claimed(folder, plan.output) as is_mine:
            if not is_mine:
                elsewhere += 1
                continue
            config = job.config(plan.output)
            if has_failed(folder):
                continue
            if not is_finished(folder) or config_of(folder, config) != config:
                note(f"run {place} of {len(jobs)}: {folder}")
            watcher.minutes = config.run.time_limit_minutes or 0.0
            try:
                if not train(config, folder, watcher):
                    return False
            except (TrainingError, RewardError) as error:
                if job.experiment != "learning-rates":
                    raise
                with disk_errors(folder):  # a rate that is too large is what the search is for
                    write_json(folder / FAILED, {"error": str(error)})
                note(f"{folder} failed, and counts as that: {error}")
                continue
            look_at(job, plan, note)
    if "last-step" in plan.only:
        with claimed(plan.output / "last-step", plan.output) as is_mine:
            elsewhere += not is_mine
            if is_mine:
                _last_step(plan, note)
    if elsewhere:
        note(f"still with other calls: {elsewhere} of the parts; the last of the calls to end has all in its results")
    with claimed(plan.output / "results.json", plan.output, wait=True):
        left_out = collect(plan, command)["left_out"]
    if left_out:
        note(f"made with another budget, or another version of rlcm, and not in the results: {', '.join(left_out)}")
    return True


@contextmanager
def claimed(part: Path, output: Path, *, wait: bool = False) -> Iterator[bool]:
    """Keep other calls off a part of the plan while the block lasts; gives False where another call has it, or waits for that."""
    lock = take_lock(output / ".locks" / "-".join(part.relative_to(output).parts), wait=wait)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def train(config: TrainConfig, folder: Path, watcher: Watcher) -> bool:
    """Train a run, or what is left of it; False after an interrupt.

    A run that had less time goes on to the time asked for.

    Raises:
        RunDirectoryError: if the folder holds a run with other settings.
    """
    begun = (folder / "config.yaml").is_file()
    changes = _more_time(folder, config) if begun else []
    if changes:
        with disk_errors(folder):
            for name in ("evaluation", "final"):  # the last, as it says that the run is finished
                shutil.rmtree(folder / name, ignore_errors=True)
    if is_finished(folder):
        return True
    trainer = Trainer.resume(folder, changes, watcher=watcher) if begun else Trainer(config, watcher=watcher)
    trainer.train()
    return is_finished(folder) and not trainer.interrupted_by


def _more_time(folder: Path, config: TrainConfig) -> list[str]:
    """Return the change that gives a run the time that is asked for, none where it had that.

    Raises:
        RunDirectoryError: if it had more, or other settings.
    """
    found = config_of(folder, config)
    if found == config:
        return []
    wanted, had = config.run.time_limit_minutes, found.run.time_limit_minutes
    extended = found.model_copy(update={"run": found.run.model_copy(update={"time_limit_minutes": wanted})})
    if extended != config or wanted is None or had is None or wanted < had:
        raise RunDirectoryError(
            f"{folder} holds a run with other settings than those asked for (a shorter --budget, or another version of rlcm); use "
            "another -o, or delete the folder."
        )
    return [f"run.time_limit_minutes={wanted}"]


def look_at(job: Job, plan: Plan, note: Callable[[str], None]) -> None:
    """Do the studies that an experiment makes of a finished run, where they are missing."""
    folder = job.folder(plan.output)
    file = folder / "evaluation" / "eval.json"
    if (
        file.is_file()
        or job.experiment in ("ablations", "learning-rates")
        or (job.experiment == "curves" and "inference" not in plan.only)
    ):
        return
    config = run_config(folder)
    rewards = [*config.rewards, *([] if job.task == "alignment" else [RewardSettings(name="alignment")])]
    groups = prompt_sets(config, True, (), limit=48)
    steps: tuple[int, ...] = (config.sampler.steps,)
    if job.experiment == "curves":
        groups, steps = groups[:1], STEPS["many" if job.method == DDPO else "few"]
    # The base model, its prompts and its noise are the same for every seed; only the gain on other prompts is one of pairs.
    base = job.experiment == "generalisation" or job.seed == 0
    settings = StudySettings(steps=steps, each=max(1, plan.images // 45), batch_size=sampled_at_once(config.rollout), base=base)
    study(config, folder, groups, rewards, settings, file.parent, note)


def _last_step(plan: Plan, note: Callable[[str], None]) -> None:
    """Measure the variance of the gradient at several numbers of steps, where that has not been done."""
    file = plan.output / "last-step.json"
    estimates, images, steps = 24, images_of_an_estimate(plan), [2, 4, 8]
    results = last_steps(plan)
    known = {(row["task"], row["steps"], row["estimates"], row["images"]) for row in results}
    for task in plan.tasks:
        for count in steps:
            if (task, count, estimates, images) in known:
                continue
            note(f"variance of the gradient: {task}, {count} steps")
            config = TrainConfig.model_validate(merge(values_of(task, PUBLISHED), {"sampler": {"steps": count}}))
            results.append({"task": task} | gradient_variance(config, estimates, images))
            with disk_errors(file):
                write_json(file, {"results": results})
