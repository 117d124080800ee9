"""The figures of the page: curves, reward against speed, gains of the variants, variance of the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reproduction.methods import ORDER
from benchmarks.reproduction.reading import metric_of
from benchmarks.reproduction.words import axis_label
from benchmarks.shared.figures import figure
from rlcm.report.drawing import PALETTE, Line, draw_chart
from rlcm.studies.compare.methods import Curve
from rlcm.studies.compare.speedup import mean_curve

Panel = tuple[list[Line], str, str, bool]
"""Lines, the names of both axes, and whether the first is logarithmic."""


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures and return their paths."""
    paths = []
    for task, found in results["curves"].items():
        panels = [_curves(found, "seconds"), _curves(found, "reward_queries")]
        paths.append(_lines(folder / f"results-curves-{task}.png", panels))
    for task, rows in results["inference"].items():
        paths.append(_lines(folder / f"results-speed-{task}.png", [_speed(rows, metric_of(results, task))]))
    for task, rows in results["ablations"].items():
        paths.append(_bars(folder / f"results-ablations-{task}.png", rows))
    if results["last_step"]:
        paths.append(_lines(folder / "results-last-step.png", [_variance(results["last_step"])]))
    return paths


def _curves(found: Mapping[str, Any], axis: str) -> Panel:
    """Return reward over time, or over reward queries: a line a method, and faintly one a seed."""
    sign, lines = -1.0 if found["metric"]["lower_is_better"] else 1.0, []
    for method in found["methods"]:
        colour = PALETTE[ORDER.index(method["name"]) if method["name"] in ORDER else -1]
        curves = [
            Curve(c["seconds"], c["reward_queries"], c["network_calls"], c["reward"], c["ci95"])
            for c in method.get("curves", ())
        ]
        for curve in curves:
            points = [(x, sign * y) for x, y in zip(getattr(curve, axis), curve.reward, strict=True) if x > 0]
            lines.append(Line("", [x for x, _ in points], [y for _, y in points], colour=colour, faint=True))
        places, means = mean_curve(curves, axis)
        points = [(x, sign * y) for x, y in zip(places, means, strict=True) if x > 0]
        lines.append(Line(method["name"], [x for x, _ in points], [y for _, y in points], colour=colour))
    name = "seconds of sampling and learning" if axis == "seconds" else "images scored"
    return lines, name, axis_label(found["metric"]), True


def _speed(rows: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]) -> Panel:
    """Return reward against images per second, tuned and untuned, a point a number of steps."""
    sign, lines = -1.0 if metric["lower_is_better"] else 1.0, []
    for place, method in enumerate(ORDER):
        for model in ("tuned", "base"):
            own = sorted((r for r in rows if (r["method"], r["model"]) == (method, model)), key=lambda r: r["steps"])
            if own and (model == "tuned" or method != "rlcm-published"):
                x, y = [r["images_per_second"]["mean"] for r in own], [sign * r["reward"]["mean"] for r in own]
                error = [r["reward"]["ci95"] or 0.0 for r in own]
                label = method if model == "tuned" else {"ddpo": "teacher, untuned", "rlcm": "student, untuned"}[method]
                lines.append(Line(label, x, y, error, True, PALETTE[place], dashed=model == "base"))
    return lines, "images per second", axis_label(metric), True


def _variance(rows: Sequence[Mapping[str, Any]]) -> Panel:
    """Return the ratio of variances over steps: a line for all tasks that have the same."""
    courses: dict[tuple[tuple[float, ...], ...], list[str]] = {}  # a reward and its negative have the same
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        course = tuple((row["steps"], row["variance_ratio"], *row["variance_ratio_interval"]) for row in own)
        courses.setdefault(course, []).append(task)
    lines = []
    for place, (course, tasks) in enumerate(courses.items()):
        x, y, low, high = zip(*course, strict=True)
        half = [(top - bottom) / 2 for bottom, top in zip(low, high, strict=True)]
        lines.append(Line("\n".join(tasks), list(x), list(y), half, True, PALETTE[place]))
    return lines, "steps", "variance, published over correct", False


def _lines(path: Path, panels: Sequence[Panel]) -> Path:
    """Draw panels side by side."""
    with figure(path, 5.4 * len(panels), 3.8) as drawn:
        for axes, (lines, x_label, y_label, log) in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            ticks = sorted({x for line in lines for x in line.x}) if x_label == "steps" else None
            draw_chart(axes, lines, x_label, y_label, log_x=log, ticks=ticks)
    return path


def _bars(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Draw the gain of each variant."""
    with figure(path, 6.4, 0.4 * len(rows) + 1) as drawn:
        axes = drawn.add_subplot()
        names, gains = [row["variant"] for row in rows][::-1], [row["gain"] for row in rows][::-1]
        axes.barh(names, [gain["mean"] for gain in gains], xerr=[gain["ci95"] or 0.0 for gain in gains], color=PALETTE[0])
        axes.set_xlabel("gain in reward")
    return path
