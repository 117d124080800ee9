"""Results of several calls as one: what a call measured replaces the same methods of the same task and experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rlcm.compare import Method, compare
from rlcm.compare.methods import Curve
from rlcm.reproduce.plan import SHARES, TASKS
from rlcm.reproduce.results import at_equal_gain, at_equal_queries

SOURCE = ("command", "machine", "budget_minutes", "clock", "seeds")
"""What is kept of a call with each task of each experiment."""
OPTIONS = ("--seeds", "--budget", "--images", "--threads", "--clock")
"""What of a call's command belongs to each of its figures."""
PARTS = {name: name for name in ("curves", "inference", "generalisation", "ablations")} | {"learning_rates": "learning-rates"}
"""What is measured task by task, and its word for --only."""


def merged(known: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results `known` with those of another call, `found`, in place of the same methods.

    A call with other options replaces whole tasks: methods of different budgets are not to be compared. Leaves out what
    `unfinished` names. What is told of several methods, such as speed-ups, is calculated anew from their curves.
    """
    source, missing = {name: found[name] for name in SOURCE}, unfinished(found)
    result: dict[str, Any] = {"sources": {}, "untrained_animals": found["untrained_animals"]}
    for part, only in PARTS.items():
        tasks, sources = dict(known.get(part, {})), dict(known.get("sources", {}).get(only, {}))
        for task, new in found[part].items():
            own = _without(new, missing.get(task, ()))
            if not own:
                continue
            if task in tasks and options(sources[task]["command"]) == options(source["command"]):
                own = _joined(tasks[task], own)
                machines = dict.fromkeys([*sources[task]["machine"].split("; "), source["machine"]])
                sources[task] = source | {"machine": "; ".join(machines)}
            else:
                sources[task] = source
            tasks[task] = _compared(own) if part == "curves" else own
        result[part] = {task: tasks[task] for task in TASKS if task in tasks}
        result["sources"][only] = sources
    measured = {row["task"] for row in found["last_step"]}
    result["last_step"] = [row for row in known.get("last_step", []) if row["task"] not in measured] + found["last_step"]
    result["sources"]["last-step"] = known.get("sources", {}).get("last-step", {}) | dict.fromkeys(measured, source)
    return result


def unfinished(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by task the methods whose curves lack seeds."""
    missing = {
        task: [method["name"] for method in curves["methods"] if len(method["seeds"]) < found["seeds"]]
        for task, curves in found["curves"].items()
    }
    return {task: names for task, names in missing.items() if names}


def options(command: str) -> tuple[str, ...]:
    """Return the words of a call that its figures depend on."""
    return tuple(word for pair in pairwise(command.split()) if pair[0] in OPTIONS for word in pair)


def _without(found: Any, methods: Sequence[str]) -> Any:
    if isinstance(found, Mapping):
        kept = [method for method in found["methods"] if method["name"] not in methods]
        return {**found, "methods": kept} if kept else None
    return [row for row in found if row.get("method") not in methods]


def _joined(known: Any, found: Any) -> Any:
    """Return what was known with new methods, or variants, in place of those of the same name."""
    if isinstance(found, Mapping):
        return {**found, "methods": _replaced(known["methods"], found["methods"], "name")}
    return _replaced(known, found, "method" if "method" in found[0] else "variant")


def _replaced(known: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    names = {row[key] for row in found}
    rows = [*(row for row in known if row[key] not in names), *found]
    order = [*SHARES]
    return sorted(rows, key=lambda row: order.index(row[key]) if row[key] in order else len(order))


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
