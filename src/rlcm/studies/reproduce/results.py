"""From the folders of finished runs to results.json and a page for every task."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rlcm.errors import UnreadableFileError
from rlcm.processes.machine import describe_machine
from rlcm.report import read_run
from rlcm.report.values import finite, mapping, mean_and_half
from rlcm.runs.files import read_json
from rlcm.runs.own_folder import OwnFolder
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_json
from rlcm.studies.compare import Method, at, compare, curve_of, read_methods, write_comparison
from rlcm.studies.intervals import mean_over_seeds
from rlcm.studies.reproduce.plan import DDPO, EXPERIMENTS, SHARES, TASKS, VARIANTS, Plan
from rlcm.training.config import TrainConfig
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.run_config import run_config


def config_of(folder: Path, wanted: TrainConfig) -> TrainConfig:
    """Return a run's configuration; where it lies makes no difference to the one that is wanted."""
    return run_config(folder).model_copy(update={"output": wanted.output})


def own_folder(output: Path) -> OwnFolder:
    """Return the folder of the results, in which no other results.json is replaced."""
    return OwnFolder(output, "rlcm reproduce", ["results.json"], _holds_results)


def _holds_results(output: Path) -> bool:
    try:
        found = read_json(output / "results.json")
    except UnreadableFileError:
        return False
    return isinstance(found, dict) and {"budget_minutes", "curves", "seeds"} <= set(found)


FAILED = "failed.json"
"""In the folder of a run that was tried out and did not come to its end."""


def has_failed(folder: Path) -> bool:
    """Say whether a run that was tried out failed."""
    return (folder / FAILED).is_file()


def is_finished(folder: Path) -> bool:
    """Say whether a run has come to its end."""
    return (folder / "final" / WEIGHTS_NAME).is_file()


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
        "learning_rates": {},
        "last_step": [row for row in last_steps(plan) if row["images"] == images_of_an_estimate(plan)],
        "left_out": [str(folder.relative_to(plan.output)) for folder in left_out],
    }
    for task in TASKS:
        runs = {name: fitting.get((name, task), []) for name in ("curves", "generalisation", "ablations", "learning-rates")}
        if runs["curves"]:
            methods, metric, warnings = read_methods(runs["curves"])
            methods = sorted(methods, key=lambda method: method.name != DDPO)
            compared = compare(methods)
            write_comparison(methods, metric, warnings, compared, plan.output / "curves" / task / "comparison.html")
            found["curves"][task] = compared | {
                "metric": {"label": metric.label, "unit": metric.unit, "lower_is_better": metric.lower_is_better},
                "equal_queries": at_equal_queries(methods),
                "equal_gain": at_equal_gain(methods),
            }
            studied = inference(runs["curves"])
            if studied:
                found["inference"][task] = studied
        if runs["generalisation"]:
            found["generalisation"][task] = generalisation(runs["generalisation"], TASKS[task].reward)
        if runs["ablations"]:
            found["ablations"][task] = ablations(runs["ablations"])
        if runs["learning-rates"]:
            found["learning_rates"][task] = [learning_rate(run) for run in runs["learning-rates"]]
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
        is_over = is_finished(folder) or has_failed(folder)
        if is_over and config_of(folder, config) == config:
            fitting.setdefault((job.experiment, job.task), []).append(folder)
        elif is_over:
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


def at_equal_gain(methods: Sequence[Method]) -> dict[str, Any]:
    """Return when each method had gained what every seed of the first gained, in the form of a target of `compare`.

    Models that begin at different rewards are so compared by what they learnt.
    """
    gains = [
        replace(
            method,
            curves=[replace(curve, reward=[reward - curve.reward[0] for reward in curve.reward]) for curve in method.curves],
        )
        for method in methods
    ]
    targets = compare(gains)["targets"]
    return dict(targets[-1]) if targets else {}


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


def learning_rate(path: Path) -> dict[str, Any]:
    """Return the evaluations of a run of `learning-rates`, and how much of its learning PPO's clip range held back."""
    run, (method, _, factor) = read_run(path), _method(path).rpartition("-x")
    found = {"method": method, "factor": int(factor), "lr": mapping(run.config.get("optimizer")).get("lr")}
    if has_failed(path):
        return found | {"failed": True}
    curve = curve_of(run, run.metric.reward)
    clipped = [value for row in run.rounds if (value := finite(row.get("clip_fraction"))) is not None]
    return found | {
        "seconds": curve.seconds, "reward": curve.reward, "clip_fraction": fmean(clipped) if clipped else None
    }  # fmt: skip


def images_of_an_estimate(plan: Plan) -> int:
    """Return how many images one estimate of the gradient is made of."""
    return max(16, plan.images // 4)


def last_steps(plan: Plan) -> list[dict[str, Any]]:
    """Return what was measured of the last step, by any call."""
    return list(_read(plan.output / "last-step.json").get("results", []))


def _method(run: Path) -> str:
    """Return a run's method from its folder's name: all but the seed."""
    return run.name.rpartition("-")[0]


def _read(file: Path) -> dict[str, Any]:
    return mapping(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
