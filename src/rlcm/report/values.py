"""Values of files that anybody may have written: what is no number or no mapping counts as none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def mapping(value: Any) -> dict[str, Any]:
    """Return a value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def finite(value: Any) -> float | None:
    """Return a value if it is a number that can be shown: finite, and not beyond what charts can scale."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e100 else None


def mean_and_half(value: Any) -> tuple[float | None, float]:
    """Return mean and half-width of a measurement; no mean where there is no number."""
    return finite(mapping(value).get("mean")), finite(mapping(value).get("ci95")) or 0.0


def half_of_change(evaluation: Mapping[str, Any], name: str, before: float, after: float) -> float:
    """Return the half-width of the 95 % interval of a change since the first evaluation.

    It is that of the differences of the same prompts and seeds, where the evaluation has it; else that of two independent means.

    Args:
        evaluation: the later one.
        name: of the figure, such as `reward` or `judge.right`.
        before, after: half-widths of the two means.
    """
    paired = finite(mapping(mapping(evaluation.get("change")).get(name)).get("ci95"))
    return math.hypot(before, after) if paired is None else paired


def alteration(entry: Mapping[str, Any]) -> str:
    """Return in a sentence after which round a run went on with something else, and with what.

    Args:
        entry: of the list `altered` in a run's depends_on.json.
    """
    what = entry.get("what")
    named = ", ".join(map(str, what)) if isinstance(what, list) else "something that is not named"
    return f"After round {entry.get('round')} it went on with other things than before: {named}."
