"""From run directories to methods: runs that differ in nothing but their seed are one method."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm.errors import UsageError
from rlcm.report.reading import Metric, Run, finite, mapping, mean_and_half, read_run

APART = ("seed", "name", "output")
"""Settings in which the runs of one method differ."""


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


@dataclass(slots=True)
class Method:
    """Runs with one configuration."""

    name: str
    runs: list[Run]
    curves: list[Curve]
    settings: dict[str, Any]
    """Where the methods differ: the dotted names of settings, and this method's values."""

    @property
    def seeds(self) -> list[Any]:
        """The runs' seeds."""
        return [run.config.get("seed") for run in self.runs]


def read_methods(paths: Sequence[Path], reward: str | None = None) -> tuple[list[Method], Metric, list[str]]:
    """Return the methods of runs, in the order given, how their reward is shown, and what makes them hard to compare.

    Args:
        reward: label of the reward to compare by, also one that a run has held out; None is what all of them were trained
            on, or else the first that all of them measured.

    Raises:
        RunDirectoryError: if a folder holds no run.
        UsageError: if the runs measured no reward in common, or one was never evaluated.
    """
    runs = [read_run(path) for path in paths]
    for run in runs:
        if not run.evaluations:
            raise UsageError(f"{run.path} has no evaluations (eval.json), so there is nothing to compare; leave it out.")
    label, metric = _common_reward(runs, reward)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    names = _names(list(groups.values()))
    differing = _differences([group[0].config for group in groups.values()])
    methods = [
        Method(name, group, [curve_of(run, label) for run in group], {key: values[i] for key, values in differing.items()})
        for i, (name, group) in enumerate(zip(names, groups.values(), strict=True))
    ]
    return methods, metric, _warnings(runs)


def curve_of(run: Run, label: str | None) -> Curve:
    """Return a run's evaluations by one reward, `label`, or by the sum of all, None; those without numbers are left out."""
    counted = {row["round"]: row for row in run.rounds} | {0: {"reward_queries": 0, "network_calls": 0, "seconds": 0}}
    curve = Curve([], [], [], [], [])
    for evaluation in run.evaluations:
        mean, half = mean_and_half(_measured(evaluation, label))
        row = mapping(counted.get(evaluation["round"]))
        seconds = finite(evaluation.get("seconds", row.get("seconds")))
        queries, calls = finite(row.get("reward_queries")), finite(row.get("network_calls"))
        if mean is None or seconds is None or queries is None or calls is None:
            continue
        for column, value in zip(
            (curve.seconds, curve.reward_queries, curve.network_calls, curve.reward, curve.half),
            (seconds, queries, calls, mean, half),
            strict=True,
        ):
            column.append(value)
    return curve


def _measured(evaluation: Mapping[str, Any], label: str | None) -> Any:
    if label is None:
        return evaluation.get("reward")
    return mapping(evaluation.get("rewards")).get(label, mapping(evaluation.get("held_out")).get(label))


def _common_reward(runs: Sequence[Run], wanted: str | None) -> tuple[str | None, Metric]:
    measured = [
        dict.fromkeys(label for e in run.evaluations for label in (*mapping(e.get("rewards")), *mapping(e.get("held_out"))))
        for run in runs
    ]
    common = [label for label in measured[0] if all(label in labels for labels in measured)]
    if wanted is not None and wanted not in common:
        raise UsageError(f"--reward {wanted!r} was not measured by all of these runs; they have {_listed(common)} in common.")
    trained = {json.dumps(run.config.get("rewards"), sort_keys=True) for run in runs}
    if wanted is None and len(trained) == 1:
        return None, runs[0].metric
    label = wanted or next(iter(common), None)
    if label is None:
        every = [label for labels in measured for label in labels]
        raise UsageError(
            f"these runs have no reward in common; they measured {_listed(list(dict.fromkeys(every)))}. Measure one of them "
            "in all runs by evaluation.held_out."
        )
    # A reward is shown as the run shows it for which it is the only one.
    shown = next((run.metric for run in runs if run.metric.reward == label), None)
    return label, shown or Metric(label.replace("_", " "), reward=label)


def _identity(run: Run) -> str:
    config = {key: value for key, value in run.config.items() if key not in APART}
    return json.dumps(config, sort_keys=True, default=str) if config else str(run.path)


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a name for every method: its first run's, without what looks like a seed."""
    full = [str(group[0].config.get("name") or group[0].path.resolve().name) for group in groups]
    short = [
        re.sub(rf"[-_.]?(seed)?[-_.]?{group[0].config.get('seed', 0)}$", "", name) or name
        for name, group in zip(full, groups, strict=True)
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


def _warnings(runs: Sequence[Run]) -> list[str]:
    """Return what is not the same in all runs and should be."""
    looked_at = {
        json.dumps(
            [
                mapping(run.config.get("evaluation")).get("seed"),
                mapping(run.config.get("evaluation")).get("images"),
                mapping(run.config.get("evaluation")).get("prompts") or run.config.get("prompts"),
            ]
        )
        for run in runs
    }
    found = []
    if len(looked_at) > 1:
        found.append("The runs were evaluated on different prompts or seeds, so their rewards differ by that, too.")
    if len({mapping(run.config.get("run")).get("clock") or "wall" for run in runs}) > 1:
        found.append("The runs counted time by different clocks (run.clock), so their times cannot be compared.")
    if any(len(run.evaluations) == 1 for run in runs):
        found.append("A run has one evaluation only, so it has no curve.")
    return found


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "none"
