"""Rewards, gains, times and intervals as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlcm.report.words import decimals, duration, written


def with_interval(value: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Return a reward with its interval, in the way of reading and the unit of its metric."""
    # Four digits: what DDPO gains is in the third and fourth.
    sign, digits = -1.0 if metric["lower_is_better"] else 1.0, decimals(value["mean"]) + 1
    mean = {"mean": sign * value["mean"], "ci95": value["ci95"]}
    return plain(mean, digits) + (f" {metric['unit']}" if metric["unit"] else "")


def shown(reward: float, metric: Mapping[str, Any]) -> str:
    """Return a reward without an interval."""
    return with_interval({"mean": reward, "ci95": None}, metric)


def against(own: Mapping[str, Any], other: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Return two rewards side by side."""
    return f"{with_interval(own, metric)} against {with_interval(other, metric)}"


def size(change: float, metric: Mapping[str, Any]) -> str:
    """Return a change of the reward without its sign."""
    return f"{written(abs(change))} {metric['unit']}".strip()


def plain(value: Mapping[str, Any], digits: int | None = None) -> str:
    """Return a number with its interval, without a unit."""
    text = written(value["mean"], digits)
    places = len(text.partition(".")[2])
    return text + (f" ± {written(value['ci95'], places)}" if value["ci95"] else "")


def axis_label(metric: Mapping[str, Any]) -> str:
    """Return what stands beside an axis of rewards."""
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['label']}{unit}, {'lower' if metric['lower_is_better'] else 'higher'} is better"


def spread(interval: Sequence[float] | None) -> str:
    """Return an interval in brackets, as it stands behind its number."""
    return f" ({written(interval[0])} to {written(interval[1])})" if interval else ""


def reached(target: Mapping[str, Any], method: str, baseline: str, *, with_factor: bool = True) -> str:
    """Return when a method reached a reward, and how much sooner than the baseline, if that is wanted."""
    entry = target["methods"][method]["seconds"]
    if entry.get("from_start"):
        return "before training"
    if entry["reached"] < entry["of"]:
        return f"reached by {entry['reached']} of {entry['of']}"
    at = duration(sum(entry["at"]) / entry["of"])
    if method == baseline or "speedup" not in entry or not with_factor:
        return at
    return f"{at}: {written(entry['speedup'])} times sooner{spread(entry['interval'])}"
