"""From the runs' files to the study's numbers: means over seeds, time to plain RLCM's reward, reward at fewer steps.

A run is where a reward is from the first look on at which it has it and is sound: that is measured, and the same for all methods.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.algorithms.measure import SOUND, STEPS, RunKey
from benchmarks.algorithms.methods import DDPO, MANY_STEP, METHODS, PLAIN, TASKS, UNTRAINED, methods_of

SHARES = (0.25, 0.5, 0.75)
"""Of the way from the untrained model to the best sound reward that any run reached."""
GRID = 40
"""Points of a mean curve."""
AXES = ("cpu", "reward_queries", "network_calls")
"""What training costs."""
Run = Mapping[str, Any]


def read_runs(results: Path, budget: float) -> dict[str, dict[str, list[Run]]]:
    """Return the runs of the present configuration and budget by task and method, seeds in order."""
    found: dict[str, dict[str, list[Run]]] = {}
    for file in sorted(results.glob("*.json")):
        run = json.loads(file.read_text())
        task, method = run["task"], run["method"]
        if task not in TASKS or method not in [UNTRAINED, *methods_of(task)]:
            continue
        if run["hash"] == RunKey(task, method, run["seed"]).hash(budget, results):
            found.setdefault(task, {}).setdefault(method, []).append(run)
    for methods in found.values():
        for runs in methods.values():
            runs.sort(key=lambda run: run["seed"])
    return found


def summarise(found: Mapping[str, Mapping[str, Sequence[Run]]], budget: float) -> dict[str, Any]:
    """Return the study's numbers; tasks without the untrained model or plain RLCM are left out."""
    tasks = {}
    for task in TASKS:
        runs = found.get(task, {})
        if UNTRAINED in runs and PLAIN in runs:
            tasks[task] = _task(task, runs)
    untuned = {task: [name for name, method in tasks[task]["methods"].items() if not method["tuned"]] for task in tasks}
    every = [run for methods in found.values() for runs in methods.values() for run in runs]
    return {
        "budget": budget,
        "machines": sorted({run["machine"] for run in every}),
        "sound": SOUND,
        "untuned": {task: names for task, names in untuned.items() if names},
        "tasks": tasks,
        "choice": _choice(tasks),
    }


def _task(task: str, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    untrained = runs[UNTRAINED][0]
    start = untrained["evaluations"][0]
    least = SOUND * start["judge"]
    target = _middle(run["best"]["reward"] for run in runs[PLAIN])
    spent = _spent(runs[PLAIN], target, least)
    base = {n: {k: untrained["steps"][n][k] for k in ("reward", "judge")} for n in map(str, STEPS)}
    methods = {}
    for method in methods_of(task):
        if method in runs and method not in MANY_STEP:
            reachable = target if target > start["reward"] else None
            methods[method] = _method(runs[method], base, reachable, spent, least)
    top = max(run["best"]["reward"] for method in methods for run in runs[method])
    for method, found in methods.items():
        found["on_the_way"] = {
            f"{share:g}": _when(runs[method], start["reward"] + share * (top - start["reward"]), least) for share in SHARES
        }
    summary = {"untrained": {**_last(start), "steps": base}, "target": target, "spent": spent, "best": top, "methods": methods}
    if baselines := {name: runs[name] for name in MANY_STEP if name in runs}:
        summary[DDPO] = _against_ddpo(baselines, {name: runs[name] for name in methods}, start)
    return summary


def _against_ddpo(
    baselines: Mapping[str, Sequence[Run]], runs: Mapping[str, Sequence[Run]], start: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what DDPO reached in its longer time, and what every method needs for that reward, and for as large a gain.

    Where DDPO was run with several settings, the methods are held against those that got furthest. The two models do not begin at
    the same reward. So there are two questions: when a method is where DDPO ended, and when it has gained as much as DDPO did.
    """
    variants = {name: _baseline(own) for name, own in baselines.items()}
    furthest = max(variants, key=lambda name: variants[name]["middle"])
    best, spent = variants[furthest]["middle"], variants[furthest]["spent"]
    gain = best - variants[furthest]["before"]["reward"]
    least = SOUND * start["judge"]

    def reached(name: str, target: float) -> dict[str, Any] | None:
        # A reward that is there before training takes no time, and a gain of nothing says nothing.
        return _reach(runs[name], target, spent, least) if gain > 0 and target > start["reward"] else None

    return {
        "variants": variants,
        "furthest": furthest,
        "methods": {name: {"to_best": reached(name, best), "to_gain": reached(name, start["reward"] + gain)} for name in runs},
    }


def _baseline(runs: Sequence[Run]) -> dict[str, Any]:
    target = _middle(run["best"]["reward"] for run in runs)
    return {
        "seeds": [run["seed"] for run in runs],
        "budget": runs[0]["budget"],
        "settings": {group: runs[0]["config"][group] for group in ("optimizer", "rollout", "algorithm")},
        "before": _last(runs[0]["evaluations"][0]),
        "reward": _spread([run["best"]["reward"] for run in runs]),
        "judge": _spread([run["best"]["judge"] for run in runs]),
        "middle": target,
        "spent": _spent(runs, target, SOUND * runs[0]["evaluations"][0]["judge"]),
        # Cut short: the best evaluation is the last one.
        "rising": sum(run["best"]["cpu"] == run["evaluations"][-1]["cpu"] for run in runs),
        "broken": sum(map(_is_broken, runs)),
        "curve": _curve(runs, "cpu", "reward"),
    }


def _method(
    runs: Sequence[Run], base: Mapping[str, Any], target: float | None, spent: Mapping[str, float], least: float
) -> dict[str, Any]:
    last = [run["best"] for run in runs]
    steps = {
        n: {k: _mean(run["steps"][n][k] for run in runs) for k in ("reward", "judge", "judge_confidence")}
        for n in map(str, STEPS)
    }
    own = str(runs[0]["config"]["sampler"]["steps"])
    gains = {n: steps[n]["reward"] - base[n]["reward"] for n in steps}
    totals = {key: _mean(run["totals"][key] for run in runs) for key in runs[0]["totals"]}
    return {
        "seeds": [run["seed"] for run in runs],
        "tuned": runs[0].get("tuned"),
        "reward": _spread([e["reward"] for e in last]),
        "judge": _spread([e["judge"] for e in last]),
        "judge_confidence": _mean(e["judge_confidence"] for e in last),
        "guard": {key: _mean(e["guard"][key] for e in last) for key in last[0]["guard"]},
        "totals": totals,
        "images_per_cpu_second": totals["reward_queries"] / totals["cpu"],
        "best_after": _spread([e["cpu"] for e in last]),
        "end": {name: _spread([run["evaluations"][-1][name] for run in runs]) for name in ("reward", "judge")},
        "broken": sum(map(_is_broken, runs)),
        "to_plain": None if target is None else _reach(runs, target, spent, least),
        "steps": steps,
        "kept": {n: gain / gains[own] if gains[own] > 0 else None for n, gain in gains.items()},
        "curves": {
            "cpu": _curve(runs, "cpu", "reward"),
            "reward_queries": _curve(runs, "reward_queries", "reward"),
            "judge": _curve(runs, "cpu", "judge"),
        },
    }


def _is_broken(run: Run) -> bool:
    """Say whether a run was over before its time, as its pictures were broken twice in a row."""
    return bool(run["totals"]["cpu"] < 0.95 * run["budget"])


def _spent(runs: Sequence[Run], target: float, least: float) -> dict[str, float]:
    """Return what the median seed spent until a reward; one that never got there, all that it had.

    Of an even number of seeds it is the later one of the middle two.
    """
    looks = [_first(run["evaluations"], target, least) for run in runs]
    rows = [
        (look is None, look or run["totals"]) for look, run in zip(looks, runs, strict=True)
    ]  # who never was there comes last
    return {axis: sorted((late, row[axis]) for late, row in rows)[len(rows) // 2][1] for axis in AXES}


def _reach(runs: Sequence[Run], target: float, spent: Mapping[str, float], least: float) -> dict[str, Any]:
    """Return how many times less than `spent` every seed takes to a reward, with a model that is sound itself."""
    crossed = [_first(run["evaluations"], target, least) for run in runs]
    found = [c for c in crossed if c is not None]
    answer: dict[str, Any] = {"reached": len(found)}
    for name, axis in (("speed_up", "cpu"), ("fewer_queries", "reward_queries")):
        # A seed that did not get there in its budget is censored: it is slower than this, by nobody knows how much.
        below = [spent[axis] / run["totals"][axis] for run, c in zip(runs, crossed, strict=True) if c is None]
        answer[name] = _censored([None if c is None else spent[axis] / c[axis] for c in crossed], max(below, default=None))
    answer["seconds"] = statistics.median([math.inf if c is None else c["cpu"] for c in crossed])
    if math.isinf(answer["seconds"]):
        answer["seconds"] = None
    return {**answer, "judge": _mean(c["judge"] for c in found) if found else None}


def _when(runs: Sequence[Run], target: float, least: float) -> dict[str, Any]:
    """Return what it took until a reward, by a model that is sound itself: the median and range of the seeds.

    A seed that did not get there is censored: it takes longer than its run, by nobody knows how much, and counts as None. The median
    of an even number is the later one of the middle two.
    """
    crossed = [_first(run["evaluations"], target, least) for run in runs]
    answer: dict[str, Any] = {"reached": sum(c is not None for c in crossed)}
    for axis in AXES:
        order = sorted(math.inf if c is None else c[axis] for c in crossed)
        found = [None if math.isinf(value) else value for value in (order[len(order) // 2], order[0], order[-1])]
        more = min((run["totals"][axis] for run, c in zip(runs, crossed, strict=True) if c is None), default=None)
        answer[axis] = {"median": found[0], "low": found[1], "high": found[2], "more_than": more}
    return answer


def _first(evaluations: Sequence[Mapping[str, Any]], target: float, least: float) -> Mapping[str, float] | None:
    """Return the first look at which the reward is at a target and the judge at `least`, or above."""
    return next((e for e in evaluations[1:] if e["reward"] >= target and e["judge"] >= least), None)


def _curve(runs: Sequence[Run], axis: str, value: str) -> dict[str, list[float]]:
    """Return mean, lowest and highest over the seeds on a common grid, as far as all of them got."""
    end = min(run["evaluations"][-1][axis] for run in runs)
    grid = np.linspace(0, end, GRID)
    lines = np.stack(
        [np.interp(grid, [e[axis] for e in run["evaluations"]], [e[value] for e in run["evaluations"]]) for run in runs]
    )
    columns = {"x": grid, "mean": lines.mean(0), "low": lines.min(0), "high": lines.max(0)}
    return {name: [float(f"{v:.5g}") for v in column] for name, column in columns.items()}


def overlaps(methods: Mapping[str, Any], name: str, other: str = PLAIN) -> bool:
    """Say whether the best rewards of a method's seeds are not all above those of another one's."""
    return name != other and bool(methods[name]["reward"]["low"] <= methods[other]["reward"]["high"])


def always_sooner(methods: Mapping[str, Any], name: str, other: str = PLAIN) -> bool:
    """Say whether all seeds of a method were sooner at plain RLCM's reward than all of another one's."""
    if methods[name]["to_plain"] is None:
        return False
    slowest, fastest = (methods[of]["to_plain"]["speed_up"][end] for of, end in ((name, "low"), (other, "high")))
    return slowest is not None and slowest > (fastest or 0.0)


def _choice(tasks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the winners: the fastest and the best of every task, of all tasks together, and where steps are few."""
    rows = []
    for task, found in tasks.items():
        methods = found["methods"]
        fast = {name: m["to_plain"]["speed_up"]["median"] or 0.0 for name, m in methods.items() if m["to_plain"]}
        best = {name: m["reward"]["mean"] for name, m in methods.items()}
        above = {name: mean for name, mean in best.items() if name != PLAIN and not overlaps(methods, name)}
        rows.append({"task": task, "what": "fastest", **_highest(_apart(fast, [found]) or fast)})
        rows.append({"task": task, "what": "highest", **_highest(above or best)})
    everywhere = [name for name in METHODS if name != PLAIN and all(name in found["methods"] for found in tasks.values())]
    overall, few = {}, {}
    for name in everywhere:
        ups, gains = [], []
        for found in tasks.values():
            method, start = found["methods"][name], found["untrained"]
            reach, at_two = method["to_plain"], method["steps"]["2"]
            ups.append((reach["speed_up"]["median"] or 0.0) if reach else 0.0)
            sound = reach and at_two["judge"] >= SOUND * start["steps"]["2"]["judge"]
            gains.append((at_two["reward"] - start["reward"]) / (found["target"] - start["reward"]) if sound else 0.0)
        if min(ups, default=0) > 0:
            overall[name] = math.prod(ups) ** (1 / len(ups))
        if min(gains, default=0) > 0:
            few[name] = min(gains)
    rows.append({"task": None, "what": "fastest", **_highest(_apart(overall, tasks.values()) or overall)})
    rows.append({"task": None, "what": "few_steps", **_highest(few)})
    return rows


def _apart(values: Mapping[str, float], tasks: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return those of which all seeds are sooner than all of plain RLCM's, on each of some tasks."""
    return {name: v for name, v in values.items() if v and all(always_sooner(found["methods"], name) for found in tasks)}


def _highest(values: Mapping[str, float]) -> dict[str, Any]:
    if not values:
        return {"method": None, "value": None}
    name = max(values, key=lambda n: values[n])
    return {"method": name, "value": values[name]}


def _last(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: evaluation[key] for key in ("reward", "judge", "judge_confidence", "guard")}


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _middle(values: Iterable[float]) -> float:
    """Return the median; of an even number the lower one of the middle two, so that at least half of them are there."""
    return statistics.median_low(values)


def _censored(values: Sequence[float | None], below: float | None) -> dict[str, float | None]:
    """Return median, lowest and highest of values of which None is lower than `below`; what is not known is None."""
    # Of an even number the lower one of the middle two, so that it is a value that was measured.
    order = sorted(values, key=lambda value: -math.inf if value is None else value)
    return {"median": order[(len(order) - 1) // 2], "low": order[0], "high": order[-1], "below": below}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": _mean(values), "median": statistics.median(values), "low": min(values), "high": max(values)}
