"""Which calls of `rlcm reproduce` the figures came from: how long each had, on which clock, and what to type for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcm.studies.reproduce.merging import options
from rlcm.studies.reproduce.plan import DEFAULT_TASKS


def sources(results: Mapping[str, Any], name: str) -> list[Any]:
    """Return the values of all sources, each once."""
    return list(dict.fromkeys(source[name] for tasks in results["sources"].values() for source in tasks.values()))


def minutes(results: Mapping[str, Any]) -> str:
    """Return how long DDPO had, with the tasks where that differs."""
    tasks: dict[str, list[str]] = {}
    for task, source in results["sources"]["curves"].items():
        tasks.setdefault(f"{source['budget_minutes']:g}", []).append(task)
    if len(tasks) < 2:
        return "".join(tasks)
    return " and ".join(f"{budget} ({', '.join(own)})" for budget, own in tasks.items())


def clock(results: Mapping[str, Any]) -> str:
    """Return what the times are times of."""
    words = {"cpu": "seconds of computing, one thread a run,", "wall": "wall-clock seconds"}
    return " or ".join(words[name] for name in sources(results, "clock"))


def command(results: Mapping[str, Any], only: str, task: str | None = None) -> str:
    """Return what gives a figure: one line for all tasks that came from the same call."""
    calls: dict[tuple[str, ...], list[str]] = {}
    for name, source in results["sources"][only].items():
        if task in (None, name):
            calls.setdefault(options(source["command"]), []).append(name)
    lines = []
    for kept, names in calls.items():
        tasks = [] if set(names) >= set(DEFAULT_TASKS) else [word for name in names for word in ("--task", name)]
        lines.append(" ".join(["rlcm reproduce --only", only, *tasks, *kept]))
    return "\n    ".join(lines)
