"""Doing the work: train what is missing, look at what is trained, collect the results.

An interrupted call goes on where it was, and several calls at once share the work.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from rlcm.compare import Method, at, compare, read_methods, write_comparison
from rlcm.config import TrainConfig, load_config
from rlcm.errors import RunDirectoryError
from rlcm.export import WEIGHTS_NAME
from rlcm.intervals import mean_over_seeds
from rlcm.machine import describe_machine
from rlcm.report.reading import mapping, mean_and_half, read_run
from rlcm.reproduce.plan import DDPO, EXPERIMENTS, PUBLISHED, SHARES, TASKS, UNTRAINED_ANIMALS, VARIANTS, Job, Plan, values_of
from rlcm.reproduce.variance import gradient_variance
from rlcm.rewards import RewardSettings
from rlcm.rundir import RunDirectory, disk_errors
from rlcm.serialization import write_json
from rlcm.settings import merge
from rlcm.study import StudySettings, prompt_sets, study
from rlcm.trainer import Trainer, Watcher

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
        RunDirectoryError: if a run with other settings is where one of the plan belongs.
    """
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
            if not is_finished(folder) or _config_of(folder, config) != config:
                note(f"run {place} of {len(jobs)}: {folder}")
            watcher.minutes = config.run.time_limit_minutes or 0.0
            if not train(config, folder, watcher):
                return False
            look_at(job, plan, note)
    if "last-step" in plan.only:
        with claimed(plan.output / "last-step", plan.output) as is_mine:
            elsewhere += not is_mine
            if is_mine:
                _last_step(plan, note)
    if elsewhere:
        note(f"still with other calls: {elsewhere} of the parts; the last of the calls to end has all in its results")
    with FileLock(plan.output / ".locks" / "results"):
        left_out = collect(plan, command)["left_out"]
    if left_out:
        note(f"made with another budget, or another version of rlcm, and not in the results: {', '.join(left_out)}")
    return True


@contextmanager
def claimed(part: Path, output: Path) -> Iterator[bool]:
    """Keep other calls off a part of the plan while the block lasts; gives False where another call has it."""
    locks = output / ".locks"
    with disk_errors(output):
        locks.mkdir(exist_ok=True)
    lock = FileLock(locks / "-".join(part.relative_to(output).parts))
    with suppress(Timeout):
        lock.acquire(blocking=False)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def train(config: TrainConfig, folder: Path, watcher: Watcher) -> bool:
    """Train a run, or what is left of it; False after an interrupt.

    A run that had less time goes on to the time asked for.

    Raises:
        RunDirectoryError: if the folder holds a run with other settings.
    """
    begun = (folder / "config.yaml").is_file()
    if begun:
        _extend(folder, config)
    if is_finished(folder):
        return True
    trainer = Trainer.resume(folder, watcher=watcher) if begun else Trainer(config, watcher=watcher)
    trainer.train()
    return is_finished(folder) and not trainer.interrupted


def _extend(folder: Path, config: TrainConfig) -> None:
    """Give a run the time that is asked for, where that is more than it had, and drop what was made at its end."""
    found = _config_of(folder, config)
    if found == config:
        return
    wanted, had = config.run.time_limit_minutes, found.run.time_limit_minutes
    extended = found.model_copy(update={"run": found.run.model_copy(update={"time_limit_minutes": wanted})})
    if extended != config or wanted is None or had is None or wanted < had:
        raise RunDirectoryError(
            f"{folder} holds a run with other settings than those asked for (a shorter --budget, or another version of rlcm); use "
            "another -o, or delete the folder."
        )
    with disk_errors(folder):
        for name in ("evaluation", "final"):  # the last, as it says that the run is finished
            shutil.rmtree(folder / name, ignore_errors=True)
    RunDirectory(folder).write_text("config.yaml", config.dump())


def _config_of(folder: Path, wanted: TrainConfig) -> TrainConfig:
    """Return a run's configuration; where it lies makes no difference to the one that is wanted."""
    return load_config(folder / "config.yaml").model_copy(update={"output": wanted.output})


def is_finished(folder: Path) -> bool:
    """Say whether a run has come to its end."""
    return (folder / "final" / WEIGHTS_NAME).is_file()


def look_at(job: Job, plan: Plan, note: Callable[[str], None]) -> None:
    """Do the studies that an experiment makes of a finished run, where they are missing."""
    folder = job.folder(plan.output)
    file = folder / "evaluation" / "eval.json"
    if file.is_file() or job.experiment == "ablations" or (job.experiment == "curves" and "inference" not in plan.only):
        return
    config = load_config(folder / "config.yaml")
    rewards = [*config.rewards, *([] if job.task == "alignment" else [RewardSettings(name="alignment")])]
    groups = prompt_sets(config, True, (), limit=48)
    steps: tuple[int, ...] = (config.sampler.steps,)
    if job.experiment == "curves":
        groups, steps = groups[:1], STEPS["many" if job.method == DDPO else "few"]
    settings = StudySettings(steps=steps, each=max(1, plan.images // 45), batch_size=config.rollout.sample_batch_size)
    study(config, folder, groups, rewards, settings, file.parent, note)


def collect(plan: Plan, command: str) -> dict[str, Any]:
    """Write results.json and the pages from the plan's folder; return what is in the file.

    What earlier calls did for other tasks, methods and experiments is in it too; runs with another budget are not.
    """
    fitting, left_out = finished(plan)
    found: dict[str, Any] = {
        "command": command,
        "machine": describe_machine(),
        "load_average": list(os.getloadavg()),
        "budget_minutes": plan.budget,
        "clock": plan.clock,
        "seeds": plan.seeds,
        "curves": {},
        "inference": {},
        "generalisation": {},
        "ablations": {},
        "last_step": [row for row in _last_steps(plan) if row["images"] == _images_of_an_estimate(plan)],
        "untrained_animals": list(UNTRAINED_ANIMALS),
        "left_out": [str(folder.relative_to(plan.output)) for folder in left_out],
    }
    for task in TASKS:
        runs = {name: fitting.get((name, task), []) for name in ("curves", "generalisation", "ablations")}
        if runs["curves"]:
            methods, metric, warnings = read_methods(runs["curves"])
            methods = sorted(methods, key=lambda method: method.name != DDPO)
            compared = compare(methods)
            write_comparison(methods, metric, warnings, compared, plan.output / "curves" / task / "comparison.html")
            found["curves"][task] = compared | {
                "metric": {"label": metric.label, "unit": metric.unit, "lower_is_better": metric.lower_is_better},
                "equal_queries": at_equal_queries(methods),
            }
            studied = inference(runs["curves"])
            if studied:
                found["inference"][task] = studied
        if runs["generalisation"]:
            found["generalisation"][task] = generalisation(runs["generalisation"], TASKS[task].reward)
        if runs["ablations"]:
            found["ablations"][task] = ablations(runs["ablations"])
    with disk_errors(plan.output / "results.json"):
        write_json(plan.output / "results.json", found)
    return found


def finished(plan: Plan) -> tuple[dict[tuple[str, str], list[Path]], list[Path]]:
    """Return the finished runs by experiment and task: those with the plan's budget and seeds, of any call, and the others."""
    whole = replace(plan, only=tuple(EXPERIMENTS), tasks=tuple(TASKS), methods=tuple(SHARES))
    fitting: dict[tuple[str, str], list[Path]] = {}
    others = []
    for job in whole.jobs():
        folder = job.folder(plan.output)
        config = job.config(plan.output)
        if is_finished(folder) and _config_of(folder, config) == config:
            fitting.setdefault((job.experiment, job.task), []).append(folder)
        elif is_finished(folder):
            others.append(folder)
    return fitting, others


def at_equal_queries(methods: Sequence[Method]) -> dict[str, Any]:
    """Return every method's reward after as many reward queries as the least that any of the runs made."""
    curves = [curve for method in methods for curve in method.curves if len(curve.reward) > 1]
    if not curves:
        return {}
    queries = min(curve.reward_queries[-1] for curve in curves)
    found: dict[str, Any] = {"reward_queries": queries, "methods": {}}
    for method in methods:
        values = [at(curve.reward_queries, curve.reward, queries) for curve in method.curves if len(curve.reward) > 1]
        if values:
            mean, half = mean_over_seeds(values)
            found["methods"][method.name] = {"mean": mean, "ci95": half, "each": values}
    return found


def inference(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return reward and speed by method, model and steps, over the seeds of the runs that were studied."""
    rows: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for run in runs:
        read = _read(run / "evaluation" / "eval.json")
        own = str(mapping(read.get("rewards", [{}])[0]).get("label", ""))
        for row in read.get("results", []):
            reward = mapping(row["rewards"].get(own))
            entry = {"reward": reward.get("mean"), "images_per_second": row["images_per_second"]}
            rows.setdefault((_method(run), row["model"], row["steps"]), []).append(entry)
    found = []
    for (method, model, steps), entries in rows.items():
        mean, half = mean_over_seeds([entry["reward"] for entry in entries])
        speed, speed_half = mean_over_seeds([entry["images_per_second"] for entry in entries])
        found.append(
            {
                "method": method, "model": model, "steps": steps, "seeds": len(entries), "reward": {"mean": mean, "ci95": half},
                "images_per_second": {"mean": speed, "ci95": speed_half},
            }
        )  # fmt: skip
    return found


def generalisation(runs: Sequence[Path], reward: str) -> list[dict[str, Any]]:
    """Return the gain on every set of prompts, and the share of the gain on trained prompts that it is, over seeds."""
    gains: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in runs:
        studied = _read(run / "evaluation" / "eval.json")
        rows = [row for row in studied.get("results", []) if row["model"] == "tuned"]
        own = studied.get("own_steps")
        changes = {row["set"]: mean_and_half(mapping(row.get("change")).get(reward))[0] for row in rows if row["steps"] == own}
        trained = changes.get("train")
        for name, change in changes.items():
            if change is not None and trained:
                gains.setdefault((_method(run), name), []).append((change, trained))
    found = []
    for (method, name), pairs in gains.items():
        gain, half = mean_over_seeds([pair[0] for pair in pairs])
        # The ratio of the means: one seed with next to no gain would rule a mean of ratios.
        kept = gain / mean_over_seeds([pair[1] for pair in pairs])[0]
        _, kept_half = mean_over_seeds([own / trained for own, trained in pairs])
        found.append(
            {
                "method": method, "set": name, "seeds": len(pairs), "gain": {"mean": gain, "ci95": half},
                "kept": {"mean": kept, "ci95": kept_half},
            }
        )  # fmt: skip
    return found


def ablations(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what every variant ended with, over seeds."""
    ends: dict[str, list[dict[str, float]]] = {}
    for path in runs:
        run = read_run(path)
        first, last = (mean_and_half(run.evaluations[i].get("reward"))[0] for i in (0, -1))
        if first is not None and last is not None and run.rounds:
            counted = {key: float(run.rounds[-1][key]) for key in ("seconds", "reward_queries", "network_calls")}
            ends.setdefault(_method(path), []).append({"before": first, "after": last, "gain": last - first} | counted)
    names = {variant.replace(" ", "-"): variant for variant in VARIANTS}
    found = []
    for method, entries in ends.items():
        row: dict[str, Any] = {"variant": names.get(method, method), "seeds": len(entries)}
        for key in entries[0]:
            mean, half = mean_over_seeds([entry[key] for entry in entries])
            row[key] = {"mean": mean, "ci95": half}
        found.append(row)
    order = list(VARIANTS)
    return sorted(found, key=lambda row: order.index(row["variant"]) if row["variant"] in order else len(order))


def _last_step(plan: Plan, note: Callable[[str], None]) -> None:
    """Measure the variance of the gradient at several numbers of steps, where that has not been done."""
    file = plan.output / "last-step.json"
    estimates, images, steps = 24, _images_of_an_estimate(plan), [2, 4, 8]
    results = _last_steps(plan)
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


def _images_of_an_estimate(plan: Plan) -> int:
    return max(16, plan.images // 4)


def _last_steps(plan: Plan) -> list[dict[str, Any]]:
    """Return what was measured of the last step, by any call."""
    return list(_read(plan.output / "last-step.json").get("results", []))


def _method(run: Path) -> str:
    """Return a run's method from its folder's name: all but the seed."""
    return run.name.rpartition("-")[0]


def _read(file: Path) -> dict[str, Any]:
    return mapping(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
