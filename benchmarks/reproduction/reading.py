"""What the results say of one method on one task: whether it rose, what it learned, and how much sooner it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlcm.studies.intervals import mean_over_seeds


def of_former_model(results: Mapping[str, Any]) -> bool:
    """Say whether the results are of the former built-in model, the one with 45 animals: only these name untrained animals."""
    return "untrained_animals" in results


def metric_of(results: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """Return what a task's reward is called, its unit, and which way is better."""
    known: Mapping[str, Any] = results["curves"].get(task, {})
    return known.get("metric", {"label": "reward", "unit": "", "lower_is_better": False})


def has(found: Mapping[str, Any], method: str) -> bool:
    """Say whether the curves of a task are there for a method."""
    return any(each["name"] == method for each in found.get("methods", ()))


def ratios_of(found: Mapping[str, Any], method: str) -> list[Mapping[str, Any]]:
    """Return how much sooner a method was at DDPO's final reward, and at as large a gain."""
    targets = [found["targets"][-1], *([found["equal_gain"]] if found["equal_gain"] else [])]
    return [target["methods"][method]["seconds"] for target in targets]


def can_tell(found: Mapping[str, Any], method: str) -> bool:
    """Say whether DDPO surely rose, and somewhere to which the method had to rise, too."""
    return bool(found["targets"]) and rose(found) and not all(entry.get("from_start") for entry in ratios_of(found, method))


def surely(found: Mapping[str, Any], method: str) -> float:
    """Return the smaller lower end of the speed-ups' intervals, at equal reward and at equal gain; 0 where not reached.

    Single seeds have no interval, and count as they are. A reward that the method began above says nothing: there the gain
    decides alone.
    """
    told = [entry for entry in ratios_of(found, method) if not entry.get("from_start")]
    if not told or any("speedup" not in entry for entry in told):
        return 0.0
    return min(entry["interval"][0] if entry["interval"] else entry["speedup"] for entry in told)


def rose(found: Mapping[str, Any]) -> bool:
    """Say whether the baseline's gain is above its interval over seeds."""
    (own,) = (each for each in found["methods"] if each["name"] == found["baseline"])
    gain, half = mean_over_seeds(
        [after - before for before, after in zip(own["before"]["each"], own["after"]["each"], strict=True)]
    )
    return half is not None and gain > half


def learned(rows: Sequence[Mapping[str, Any]], method: str) -> bool:
    """Say whether a method's gain on its own prompts is above its interval."""
    gains = [row["gain"] for row in rows if row["method"] == method and row["set"] == "train"]
    return bool(gains) and gains[0]["mean"] > (gains[0]["ci95"] or 0.0)


def in_two_steps(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any], float] | None:
    """Return the reward of the default in two steps, of DDPO in fifty, and how much faster that is; None if unmeasured."""
    tuned = {(row["method"], row["steps"]): row for row in rows if row["model"] == "tuned"}
    own, other = tuned.get(("rlcm", 2)), tuned.get(("ddpo", 50))
    if own is None or other is None:
        return None
    faster = own["images_per_second"]["mean"] / other["images_per_second"]["mean"]
    return own["reward"], other["reward"], faster
