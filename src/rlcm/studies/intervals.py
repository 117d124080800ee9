"""95 % intervals over a few seeds: Student's, because three runs say little about their own spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

# The 97.5 % point of Student's distribution with 1, 2, ... degrees of freedom; a rounded-down degree is the wider interval.
# fmt: off
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


def student(degrees: float) -> float:
    """Return the 97.5 % point of Student's t distribution, at `degrees` (>= 1) rounded down; above 30 that of 30.

    Raises:
        ValueError: if degrees < 1.
    """
    if not degrees >= 1:
        raise ValueError(f"degrees={degrees} is below 1")
    return _STUDENT[min(int(degrees), len(_STUDENT)) - 1]


def mean_over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of one number a seed and the half-width of its 95 % interval, None for a single seed.

        half = t(n - 1) s / sqrt(n)

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("no values")
    mean = fmean(values)
    return mean, None if len(values) < 2 else student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def ratio_over_seeds(above: Sequence[float], below: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return how many times larger `above` is than `below`, and the 95 % interval of that, None where a spread is unknown.

    Ratio of geometric means; the interval is Welch's on the logarithms, so that times which differ by orders of magnitude
    have symmetric errors:

        log ratio +- t(v) sqrt(a + b),   a = s_a^2 / n_a,   v = (a + b)^2 / (a^2 / (n_a - 1) + b^2 / (n_b - 1))

    Raises:
        ValueError: if a side has no values, or one that is not above 0.
    """
    if not above or not below or min(*above, *below) <= 0:
        raise ValueError("both sides of a ratio need values above 0")
    logs = [[math.log(value) for value in side] for side in (above, below)]
    log_ratio = fmean(logs[0]) - fmean(logs[1])
    if min(map(len, logs)) < 2:
        return math.exp(log_ratio), None
    a, b = (stdev(side) ** 2 / len(side) for side in logs)
    if a + b == 0:
        return math.exp(log_ratio), (math.exp(log_ratio), math.exp(log_ratio))
    degrees = (a + b) ** 2 / (a**2 / (len(above) - 1) + b**2 / (len(below) - 1))
    half = student(max(1.0, degrees)) * math.sqrt(a + b)
    return math.exp(log_ratio), (math.exp(log_ratio - half), math.exp(log_ratio + half))
