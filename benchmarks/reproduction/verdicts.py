"""The claims that the experiments were to show, each with its bar, and what the results say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.reproduction.reading import can_tell, has, in_two_steps, learned, metric_of, ratios_of, rose, surely
from benchmarks.reproduction.words import against, shown, spread
from rlcm.report.words import written
from rlcm.studies.reproduce.plan import DEFAULT_TASKS


class Verdict(NamedTuple):
    """A claim with its bar, and what was found."""

    claim: str
    bar: str
    found: str
    reached: bool | None
    """None where nothing was measured that could tell."""
    tasks: frozenset[str]
    """Those that decide it."""

    def cells(self) -> list[str]:
        """Return the cells of its row."""
        is_whole = self.tasks >= set(DEFAULT_TASKS)
        word = {None: "open" if self.found else "not measured", True: "yes" if is_whole else "so far", False: "**no**"}[
            self.reached
        ]
        return [self.claim, self.bar, self.found, word]


def verdicts(results: Mapping[str, Any]) -> list[Verdict]:
    """Return what became of each claim."""
    # Without DDPO, or without a method of its own, a task says nothing on the claims.
    curves = {task: found for task, found in results["curves"].items() if found["baseline"] == "ddpo"}
    return [
        _speed(
            curves,
            "rlcm-published",
            "RLCM as published is sooner at the highest reward that every seed of DDPO reached",
            "all tasks, and by an equal gain",
            somewhere=1.0,
            everywhere=1.0,
        ),
        _speed(
            curves,
            "rlcm",
            "the default is there sooner",
            "surely 50 times on one task, 17 times on all, and by an equal gain",
            somewhere=50.0,
            everywhere=17.0,
        ),
        _equal_queries(curves, "rlcm-published", "RLCM as published"),
        _equal_queries(curves, "rlcm", "the default"),
        _two_steps(results),
        _generalisation(results),
        _last_step(results),
    ]


def _speed(curves: Mapping[str, Any], method: str, claim: str, bar: str, *, somewhere: float, everywhere: float) -> Verdict:
    """Return whether a method is surely so many times sooner than DDPO on one task, and on all."""
    own = {task: found for task, found in curves.items() if has(found, method)}
    told = [f"{task} {_sooner(found, method)}" for task, found in own.items()]
    # A rise of DDPO that may be chance says nothing.
    ratios = {task: surely(found, method) for task, found in own.items() if can_tell(found, method)}
    open_tasks = not ratios.keys() >= set(DEFAULT_TASKS)
    reached: bool | None = None
    if ratios:
        reached = min(ratios.values()) >= everywhere and (max(ratios.values()) >= somewhere or (None if open_tasks else False))
    return Verdict(claim, bar, "; ".join(told), reached, frozenset(ratios))


def _equal_queries(curves: Mapping[str, Any], method: str, name: str) -> Verdict:
    """Return whether a method has at least DDPO's reward where both have scored as many images."""
    pairs = {
        task: (equal[method], equal["ddpo"])
        for task, found in curves.items()
        if {method, "ddpo"} <= (equal := found["equal_queries"].get("methods", {})).keys()
    }
    won = [own["mean"] >= other["mean"] for own, other in pairs.values()]
    told = [f"{task} {against(*pair, curves[task]['metric'])}" for task, pair in pairs.items()]
    claim = f"reward at equal reward queries: {name} at least DDPO's"
    return Verdict(claim, "all", "; ".join(told), all(won) if won else None, frozenset(pairs))


def _two_steps(results: Mapping[str, Any]) -> Verdict:
    """Return whether the default in two steps beats DDPO in fifty, at a tenth of the time, on enough tasks."""
    steps = {task: found for task, each in results["inference"].items() if (found := in_two_steps(each))}
    better, needed = sum(own["mean"] > other["mean"] and faster >= 10 for own, other, faster in steps.values()), 2
    reached = None if better < needed <= better + len(set(DEFAULT_TASKS) - set(steps)) else better >= needed
    told = [
        f"{task} {against(own, other, metric_of(results, task))}, {written(faster)} times as fast"
        for task, (own, other, faster) in steps.items()
    ]
    claim = "the default in 2 steps: a better reward than DDPO in 50, in a tenth of the time an image"
    settled = DEFAULT_TASKS if better >= needed else steps
    return Verdict(claim, f"{needed} tasks", "; ".join(told), reached, frozenset(settled))


def _generalisation(results: Mapping[str, Any]) -> Verdict:
    """Return whether what was surely learned is kept on combinations that were left out of training."""
    kept, unsure = {}, []
    for task, found in results["generalisation"].items():
        for each in found:
            if each["set"] == "unseen combinations" and learned(found, each["method"]):
                kept[task, each["method"]] = each["kept"]["mean"]
            elif each["set"] == "unseen combinations":
                unsure.append(f"{task} ({each['method']}) no sure gain")
    told = [f"{task} ({method}) {value:.0%}" for (task, method), value in kept.items()] + unsure
    reached = min(kept.values()) >= 0.8 if kept else None
    claim = "share of the gain kept on unseen combinations"
    return Verdict(claim, "80 %", ", ".join(told), reached, frozenset(task for task, _ in kept))


def _last_step(results: Mapping[str, Any]) -> Verdict:
    """Return whether the last step, taken as published, surely adds variance to the gradient."""
    last = results["last_step"]
    ratios = [each["variance_ratio"] for each in last]
    told = f"{written(min(ratios))} to {written(max(ratios))} times" if ratios else ""
    sure = all(each["variance_ratio_interval"][0] > 1 for each in last) if last else None
    claim = "gradient variance with the last step as published over the correct one"
    return Verdict(claim, "above 1, and surely", told, sure, frozenset(each["task"] for each in last))


def _sooner(found: Mapping[str, Any], method: str) -> str:
    """Return how much sooner a method was at DDPO's final reward and gain, or why that cannot be said."""
    if not found["targets"]:
        return "(DDPO's reward did not rise)"
    words = [
        "before training" if entry.get("from_start") else "not reached"
        if "speedup" not in entry else f"{written(entry['speedup'])} times{spread(entry['interval'])}"
        for entry in ratios_of(found, method)
    ]  # fmt: skip
    return f"{', by gain '.join(words)}; DDPO {_ends(found)}"


def _ends(found: Mapping[str, Any]) -> str:
    """Return from where to where the baseline came, and whether that is sure."""
    (own,) = (each for each in found["methods"] if each["name"] == found["baseline"])
    start, end = own["before"]["mean"], own["after"]["mean"]
    gain = f"{shown(start, found['metric'])} to {shown(end, found['metric'])}" + (
        f", {abs(end / start - 1):.1%}" if start else ""
    )
    return gain if rose(found) else f"{gain}, not a sure gain"
