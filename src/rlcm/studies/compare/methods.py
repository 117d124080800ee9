"""From run directories to methods: runs that differ in nothing but their seed are one method."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlcm.errors import RunDirectoryError, UsageError
from rlcm.paths import command
from rlcm.report import read_run
from rlcm.report.metric import Metric
from rlcm.report.run import Run
from rlcm.report.values import finite, mapping, mean_and_half
from rlcm.runs.files import is_there, printable, why_no_file
from rlcm.runs.listing import runs_in

APART = ("seed", "name", "output")
"""Settings in which the runs of one method differ."""
OTHER_SETS = "The runs were evaluated on different prompts or seeds, so their rewards differ by that, too."
OTHER_REWARDS = "The reward is not the same in all runs"
OTHER_CLOCKS = "The runs counted time by different clocks (run.clock), so their times cannot be compared."


@dataclass(slots=True)
class Curve:
    """The evaluations of one run, in order."""

    seconds: list[float]
    """Of sampling and learning; evaluations and saving are left out."""
    reward_queries: list[float]
    network_calls: list[float]
    reward: list[float]
    """Higher is better."""
    half: list[float]
    """Half-widths of the 95 % intervals over images."""
    outcome: int = -1
    """Index of the evaluation of the weights in final/; the last one before there are any."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """All that each of them found."""


@dataclass(slots=True)
class Method:
    """Runs with one configuration."""

    name: str
    runs: list[Run]
    curves: list[Curve]
    """One a run, of two evaluations or more."""
    settings: dict[str, Any]
    """Where the methods differ: the dotted names of settings, and this method's values."""

    @property
    def seeds(self) -> list[Any]:
        """The runs' seeds."""
        return [run.config.get("seed") for run in self.runs]


def read_methods(paths: Sequence[Path], reward: str | None = None) -> tuple[list[Method], Metric, list[str]]:
    """Return the methods of runs, in the order given, how their reward is shown, and what makes them hard to compare.

    A folder given twice is one run. What is no run, or cannot be read, is left out with a word on it, and so are runs with one
    evaluation only: they know the base model alone, and would pass for runs that learnt nothing in no time.

    Args:
        paths: run directories.
        reward: label of the reward to compare by, also one that a run has held out; None is what all of them were trained
            on, or else the first that all of them measured.

    Raises:
        RunDirectoryError: if a path does not exist.
        UsageError: if the runs measured no reward in common, or none was evaluated more than once.
    """
    readable, left_out = _readable(_each_once(paths))
    given = [run for run in readable if run.evaluations]
    left_out += [f"{run.path} has no evaluations (eval.json)" for run in readable if not run.evaluations]
    label = _common_reward(given, reward) if given else None
    runs = [run for run in given if len(curve_of(run, label).reward) > 1]
    left_out += [_why_left_out(run) for run in given if run not in runs]
    if not runs:
        raise UsageError(
            f"there is nothing to compare: {'; '.join(left_out)}. Let them train as far as a second evaluation; "
            "rlcm train --resume goes on with a stopped run."
        )
    sign = reward_sign(runs, label)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    names = _names([group[0] for group in groups.values()])
    differing = _differences([group[0].config for group in groups.values()])
    methods = [
        Method(
            name, group, [curve_of(run, label, sign) for run in group], {key: values[i] for key, values in differing.items()}
        )
        for i, (name, group) in enumerate(zip(names, groups.values(), strict=True))
    ]
    return methods, _metric(runs, label, sign), _warnings(methods, label) + [f"{text}, and is left out." for text in left_out]


def measured_alike(warnings: Sequence[str]) -> bool:
    """Return whether runs with these warnings were measured alike, so that one of them can be said to be ahead."""
    return not any(text.startswith((OTHER_SETS, OTHER_REWARDS, OTHER_CLOCKS)) for text in warnings)


def curve_of(run: Run, label: str | None, sign: float = 1.0) -> Curve:
    """Return a run's evaluations by one reward, `label`, or by the sum of all, None; those without numbers are left out.

    Args:
        run: what was read of its directory.
        label: of the reward.
        sign: -1 for a penalty, of which less is better.
    """
    counted = {row["round"]: row for row in run.rounds} | {0: {"reward_queries": 0, "network_calls": 0, "seconds": 0}}
    curve = Curve([], [], [], [], [])
    for evaluation in run.evaluations:
        mean, half = mean_and_half(measured(evaluation, label))
        row = mapping(counted.get(evaluation["round"]))
        seconds = finite(evaluation.get("seconds", row.get("seconds")))
        queries, calls = finite(row.get("reward_queries")), finite(row.get("network_calls"))
        if mean is None or seconds is None or queries is None or calls is None:
            continue
        for column, value in zip(
            (curve.seconds, curve.reward_queries, curve.network_calls, curve.reward, curve.half),
            (seconds, queries, calls, sign * mean, half),
            strict=True,
        ):
            column.append(value)
        curve.evaluations.append(evaluation)
        if evaluation is run.outcome:
            curve.outcome = len(curve.reward) - 1
    return curve


def reward_sign(runs: Sequence[Run], label: str | None) -> float:
    """Return -1 for a reward that all of those runs train as a penalty that train it at all, else 1."""
    weights = [weight for run in runs if (weight := _weight(run, label)) is not None]
    return -1.0 if weights and max(weights) < 0 else 1.0


def set_of(run: Run) -> str:
    """Return what tells the fixed set of a run's evaluations from another: its seed, size and prompts."""
    settings = mapping(run.config.get("evaluation"))
    return json.dumps([settings.get("seed"), settings.get("images"), settings.get("prompts") or run.config.get("prompts")])


def _each_once(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in paths:
        found.setdefault(Path(os.path.realpath(path)), path)
    return list(found.values())


def _readable(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs that can be read, and why the others cannot, as the beginning of a sentence."""
    runs, left_out = [], []
    for path in paths:
        try:
            run = read_run(path)
            if run.config_damaged:  # which method it is, is not known then
                left_out.append(f"{printable(path)} has a damaged config.yaml ({run.config_damaged})")
            else:
                runs.append(run)
        except RunDirectoryError:
            if not is_there(path):  # a name that was mistyped
                raise
            why = why_no_file(path).removeprefix("it ") or "is a file"
            if why == "is a folder":
                inside, _ = runs_in(path)
                why = (
                    f"is a folder of runs, and wants them named ({command(path)}/*)"
                    if inside
                    else "holds no run that can be read"
                )
            left_out.append(f"{printable(path)} {why}")
    return runs, left_out


def _entry(run: Run, label: str | None) -> Mapping[str, Any]:
    """Return the settings of a reward that a run is trained on; empty where it is not."""
    rewards = run.config.get("rewards")
    for entry in map(mapping, rewards if isinstance(rewards, list) else []):
        # A reward may answer several values, label/component.
        if label is not None and (entry.get("label") or entry.get("name")) == label.partition("/")[0]:
            return entry
    return {}


def _weight(run: Run, label: str | None) -> float | None:
    """Return what a reward counts in a run's sum; None where it is not trained on."""
    entry = _entry(run, label)
    return finite(entry.get("weight", 1.0)) if entry else None


def measured(evaluation: Mapping[str, Any], label: str | None) -> Any:
    """Return what an evaluation found of a reward, trained on or held out, or of the sum of all, None."""
    if label is None:
        return evaluation.get("reward")
    return mapping(evaluation.get("rewards")).get(label, mapping(evaluation.get("held_out")).get(label))


def _common_reward(runs: Sequence[Run], wanted: str | None) -> str | None:
    """Return the label of the reward to compare by; None is the sum of several."""
    measured = [
        dict.fromkeys(label for e in run.evaluations for label in (*mapping(e.get("rewards")), *mapping(e.get("held_out"))))
        for run in runs
    ]
    common = [label for label in measured[0] if all(label in labels for labels in measured)]
    if wanted is not None and wanted not in common:
        raise UsageError(f"--reward {wanted!r} was not measured by all of these runs; they have {_listed(common)} in common.")
    trained = {json.dumps(run.config.get("rewards"), sort_keys=True) for run in runs}
    if wanted is None and len(trained) == 1:
        # A single reward is told as it is, without its weight and normalisation: those have not its unit.
        only = runs[0].metric.reward
        return only if only in common else None
    label = wanted or next(iter(common), None)
    if label is None:
        every = [label for labels in measured for label in labels]
        raise UsageError(
            f"these runs have no reward in common; they measured {_listed(list(dict.fromkeys(every)))}. Measure one of them "
            "in all runs by evaluation.held_out."
        )
    return label


def _metric(runs: Sequence[Run], label: str | None, sign: float) -> Metric:
    """Return how the rewards of curves are shown: as the run shows them for which the reward is the only one."""
    if label is None:
        return runs[0].metric
    plain = Metric(label.replace("_", " "), reward=label)
    alike = [run.metric for run in runs if run.metric.reward == label and ((_weight(run, label) or 1.0) < 0) == (sign < 0)]
    own = next(iter(alike), plain)
    # A penalty of which the run says no more than its name: the curve is its negative, and less of it is better.
    lower = own.lower_is_better or (sign < 0 and own == plain)
    return Metric(own.label, own.unit, lower, label)


def _identity(run: Run) -> str:
    config = {key: value for key, value in run.config.items() if key not in APART}
    return json.dumps(config, sort_keys=True, default=str) if config else str(run.path)


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a name for every method by its first run: that run's, without what is surely its seed."""
    full = [str(run.config.get("name") or os.path.basename(os.path.realpath(run.path))) for run in runs]
    short = [
        re.sub(rf"[-_.](seed[-_.]?|s)?{re.escape(str(run.config.get('seed', 0)))}$", "", name) or name
        for name, run in zip(full, runs, strict=True)
    ]
    short = [name if short.count(name) == 1 else whole for name, whole in zip(short, full, strict=True)]
    return [name if short.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(short, 1)]


def _differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    flat = [_flat(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one if key not in APART)
    columns = {key: [one.get(key) for one in flat] for key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) and value else {f"{before}{key}": value}
    return found


def _why_left_out(run: Run) -> str:
    if len(run.evaluations) == 1:
        return f"{run.path} has one evaluation only"
    return f"{run.path} has a reward, a time and counts (eval.json, metrics.jsonl) for fewer than two of its evaluations"


def _warnings(methods: Sequence[Method], label: str | None) -> list[str]:
    """Return what speaks against the comparison: what is not the same in all runs and should be, or is and should not."""
    runs = [run for method in methods for run in method.runs]
    found = []
    if len(set(map(set_of, runs))) > 1:
        found.append(OTHER_SETS)
    made = [entry for run in runs if (entry := _entry(run, label))]
    if len({json.dumps([entry.get("name"), mapping(entry.get("args"))], sort_keys=True) for entry in made}) > 1:
        found.append(f"{OTHER_REWARDS}: the name or the arguments of {label} differ, and so do its values.")
    if len({mapping(run.config.get("run")).get("clock") or "wall" for run in runs}) > 1:
        found.append(OTHER_CLOCKS)
    for method in methods:
        twice = [str(seed) for seed, count in Counter(map(str, method.seeds)).items() if count > 1]
        if twice:
            found.append(
                f"Several runs of {method.name} have the same seed ({', '.join(twice)}), so they are no independent seeds, and "
                "its intervals are too narrow."
            )
    found += [
        f"{run.path} has not ended: its figures are of round {run.outcome['round']:.0f}."
        for run in runs
        if run.final_round is None
    ]
    found += [
        f"{run.path} was made longer and has not ended: its figures are of round {run.final_round}, its curve goes on to round "
        f"{run.last_round}."
        for run in runs
        if run.goes_on
    ]
    return found


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "none"
