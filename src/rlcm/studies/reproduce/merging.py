"""Results of several calls as one: what a call measured replaces the same methods of the same task and experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rlcm.studies.compare import Method, compare
from rlcm.studies.compare.methods import Curve
from rlcm.studies.reproduce.plan import SHARES, TASKS
from rlcm.studies.reproduce.results import at_equal_gain, at_equal_queries

SOURCE = ("command", "machine", "budget_minutes", "clock", "seeds")
"""What is kept of a call with each task of each experiment."""
OPTIONS = ("--seeds", "--budget", "--images", "--threads", "--clock")
"""What of a call's command belongs to each of its figures."""
PARTS = {name: name for name in ("curves", "inference", "generalisation", "ablations")} | {"learning_rates": "learning-rates"}
"""What is measured task by task, and its word for --only."""


def merged(known: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results `known` with those of another call, `found`, in place of the same methods.

    A call with other options, or on another machine, replaces whole tasks: methods of different budgets or machines are not
    to be compared. Leaves out what `unfinished` names. What is told of several methods, such as speed-ups, is calculated anew
    from their curves.
    """
    source, missing = {name: found[name] for name in SOURCE}, unfinished(found)
    result: dict[str, Any] = {"sources": {}}
    for part, only in PARTS.items():
        tasks, sources = dict(known.get(part, {})), dict(known.get("sources", {}).get(only, {}))
        for task, new in found.get(part, {}).items():
            own = _without(new, missing.get((part, task), ()))
            if own and task in tasks and _is_alike(sources[task], source):
                own = _joined(tasks[task], own)
            if own:
                tasks[task], sources[task] = _compared(own) if part == "curves" else own, source
        result[part] = {task: tasks[task] for task in TASKS if task in tasks}
        result["sources"][only] = sources
    curves, studies = (result["sources"][part] for part in ("curves", "inference"))
    for task in [task for task in studies if task in curves and not _is_alike(curves[task], studies[task])]:
        del studies[task], result["inference"][task]  # a study of the models of other curves
    measured = {row["task"] for row in found["last_step"]}
    result["last_step"] = [row for row in known.get("last_step", []) if row["task"] not in measured] + found["last_step"]
    result["sources"]["last-step"] = known.get("sources", {}).get("last-step", {}) | dict.fromkeys(measured, source)
    return result


def unfinished(found: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Return the methods and variants that lack seeds, by part and task."""
    missing: dict[tuple[str, str], dict[str, None]] = {}
    for part in ("curves", "inference", "generalisation", "ablations"):
        for task, own in found.get(part, {}).items():
            for row in _rows(own):
                seeds = row["seeds"] if isinstance(row["seeds"], int) else len(row["seeds"])
                # The base model is the same for all seeds.
                if seeds < found["seeds"] and row.get("model") != "base":
                    missing.setdefault((part, task), {})[_name(row)] = None
    return {place: list(names) for place, names in missing.items()}


def names_in(results: Mapping[str, Any]) -> set[tuple[str, str, str]]:
    """Return what is in results: part, task, and method or variant."""
    return {(part, task, _name(row)) for part in PARTS for task, own in results.get(part, {}).items() for row in _rows(own)}


def options(command: str) -> tuple[str, ...]:
    """Return the words of a call that its figures depend on."""
    return tuple(word for pair in pairwise(command.split()) if pair[0] in OPTIONS for word in pair)


def _is_alike(known: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return options(known["command"]) == options(found["command"]) and known["machine"] == found["machine"]


def _rows(found: Any) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = found["methods"] if isinstance(found, Mapping) else found
    return rows


def _name(row: Mapping[str, Any]) -> str:
    return str(next(row[key] for key in ("name", "method", "variant") if key in row))


def _with_rows(found: Any, rows: list[Mapping[str, Any]]) -> Any:
    return {**found, "methods": rows} if isinstance(found, Mapping) else rows


def _without(found: Any, names: Sequence[str]) -> Any:
    """Return what was found without some methods; None if nothing is left."""
    rows = [row for row in _rows(found) if _name(row) not in names]
    return _with_rows(found, rows) if rows else None


def _joined(known: Any, found: Any) -> Any:
    """Return what was known with new methods, or variants, in place of those of the same name."""
    names, order = {_name(row) for row in _rows(found)}, [*SHARES]
    rows = [*(row for row in _rows(known) if _name(row) not in names), *_rows(found)]
    rows.sort(key=lambda row: order.index(_name(row)) if _name(row) in order else len(order))
    return _with_rows(found, rows)


def _compared(found: Mapping[str, Any]) -> dict[str, Any]:
    methods = [
        Method(
            method["name"],
            [],
            [Curve(c["seconds"], c["reward_queries"], c["network_calls"], c["reward"], c["ci95"]) for c in method["curves"]],
            method["settings"],
        )
        for method in found["methods"]
    ]
    fresh = compare(methods)
    own = {"baseline": fresh["baseline"], "targets": fresh["targets"]}
    return {**found, **own, "equal_queries": at_equal_queries(methods), "equal_gain": at_equal_gain(methods)}
