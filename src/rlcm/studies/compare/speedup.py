"""How much sooner one method reaches the reward of another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlcm.report.values import finite, mapping, mean_and_half
from rlcm.studies.compare.methods import Curve, Method
from rlcm.studies.intervals import mean_over_seeds, ratio_over_seeds

AXES = {"seconds": "time", "reward_queries": "reward queries", "network_calls": "network calls"}
"""What a reward can be set against, and its name."""
SHARES = (0.5, 0.9, 1.0)
"""Shares of the baseline's gain at which methods are compared."""


def compare(methods: Sequence[Method], baseline: str | None = None) -> dict[str, Any]:
    """Return what methods ended with, and how much sooner they reached what the baseline reached.

    The reward at which two methods are compared is the highest that EVERY seed of the baseline reached, and shares of the
    gain up to it, so that no seed of the baseline is left out. The baseline is there where the straight line between two of
    its evaluations is, another method at the first evaluation that shows it: nothing is credited to a time at which nobody
    looked, and speed-ups are rather too small. The speed-up is the ratio of geometric means, with Welch's 95 % interval on
    the logarithms.

    Args:
        baseline: name of the method that the others are compared with; None is the first.

    Raises:
        ValueError: if there is no method of that name.
    """
    names = [method.name for method in methods]
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline {baseline!r} is none of {', '.join(names)}")
    against = methods[names.index(baseline)] if baseline else methods[0]
    start = _mean([curve.reward[0] for curve in against.curves])
    top = min((max(curve.reward) for curve in against.curves), default=math.nan)
    found: dict[str, Any] = {"baseline": against.name, "methods": [_summary(method) for method in methods], "targets": []}
    if not top > start:
        return found
    for share in SHARES:
        # Rounding could put it above what the baseline reached.
        target = min(top, start + share * (top - start))
        reached = {
            method.name: {
                axis: [time_to(curve, axis, target, between=method is against) for curve in method.curves] for axis in AXES
            }
            for method in methods
        }
        found["targets"].append(
            {
                "share": share,
                "reward": target,
                "methods": {
                    method.name: {axis: _sooner(reached[against.name][axis], reached[method.name][axis]) for axis in AXES}
                    for method in methods
                },
            }
        )
    return found


def time_to(curve: Curve, axis: str, target: float, *, between: bool) -> float | None:
    """Return where on an axis a run first reaches a reward; None if it does not.

    A run that begins above the target reaches it at its first evaluation.

    Args:
        between: by straight lines between evaluations; otherwise at the first evaluation that is as high.
    """
    x: list[float] = getattr(curve, axis)
    for place, reward in enumerate(curve.reward):
        if reward >= target:
            if place == 0 or not between:
                return x[place]
            before, low = x[place - 1], curve.reward[place - 1]
            return before + (x[place] - before) * (target - low) / (reward - low)
    return None


def mean_curve(curves: Sequence[Curve], axis: str) -> tuple[list[float], list[float]]:
    """Return the mean over seeds of curves, where all of them are known, at the places where one of them was measured."""
    columns = [(getattr(curve, axis), curve.reward) for curve in curves if curve.reward]
    if not columns:
        return [], []
    start, end = max(x[0] for x, _ in columns), min(x[-1] for x, _ in columns)
    places = sorted({place for x, _ in columns for place in x if start <= place <= end})
    return places, [_mean([at(x, y, place) for x, y in columns]) for place in places]


def at(x: Sequence[float], y: Sequence[float], place: float) -> float:
    """Return the value at a place, on straight lines between points; beyond the last, the last."""
    for i in range(1, len(x)):
        if place <= x[i]:
            width = x[i] - x[i - 1]
            return y[i] if width == 0 else y[i - 1] + (y[i] - y[i - 1]) * (place - x[i - 1]) / width
    return y[-1]


def _sooner(baseline: Sequence[float | None], own: Sequence[float | None]) -> dict[str, Any]:
    there = [value for value in own if value is not None]
    found: dict[str, Any] = {"reached": len(there), "of": len(own), "at": list(own)}
    known = [value for value in baseline if value is not None]
    if there and len(there) == len(own) and max(there) == 0:
        found["from_start"] = True  # no time can be compared
    # A mean over those seeds alone that got there would flatter the method.
    if len(there) == len(own) and len(known) == len(baseline) and min(*there, *known) > 0:
        ratio, interval = ratio_over_seeds(known, there)
        found |= {"speedup": ratio, "interval": None if interval is None else list(interval)}
    return found


def _summary(method: Method) -> dict[str, Any]:
    """Return what a method cost and ended with, over its seeds."""
    curves = method.curves
    found: dict[str, Any] = {"name": method.name, "seeds": method.seeds, "runs": [str(run.path) for run in method.runs]}
    found["settings"] = method.settings
    if curves:
        found["before"] = _over([curve.reward[0] for curve in curves])
        found["after"] = _over([curve.reward[curve.outcome] for curve in curves])
        found |= {axis: _over([getattr(curve, axis)[-1] for curve in curves]) for axis in AXES}
        found["curves"] = [
            {axis: getattr(curve, axis) for axis in AXES} | {"reward": curve.reward, "ci95": curve.half} for curve in curves
        ]
    for group in ("judge", "held_out", "guard"):
        values: dict[str, list[float]] = {}
        for run in method.runs:
            for key, value in mapping(run.outcome.get(group)).items():
                mean = finite(value) if group == "guard" else mean_and_half(value)[0]
                if mean is not None:
                    values.setdefault(str(key), []).append(mean)
        found[group] = {key: _over(each) for key, each in values.items()}
    return found


def _over(values: Sequence[float]) -> dict[str, Any]:
    mean, half = mean_over_seeds(values)
    return {"mean": mean, "ci95": half, "each": list(values)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
