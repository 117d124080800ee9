"""Values of files that anybody may have written: what is no number or no mapping counts as none."""

from __future__ import annotations

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
