"""The charts of the page, as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from rlcm.report.run import Run
from rlcm.report.values import finite, mapping, mean_and_half
from rlcm.report.words import asked, meaning_of, titled

ACCENT, INK, MUTED, LINE = "#1f5fbf", "#1d2126", "#6a727c", "#d9dde2"
PALETTE = (ACCENT, "#d9731a", "#2a8f5b", "#8a4fbf", "#b3364b", "#5b6670", "#0f8f9c", "#9c7a0f")
"""Colours of things that stand side by side."""
SMALL, LARGE = (3.9, 2.3), (5.2, 3.4)
STYLE: dict[str, Any] = {
    "text.usetex": False,
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 10, "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED, "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#eceef1", "axes.axisbelow": True, "axes.formatter.useoffset": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """Points of a chart."""

    label: str
    x: list[float]
    y: list[float]
    error: list[float] | None = None
    measured: bool = False
    """Points with a line through them, in the accent colour, rather than a thin grey line."""
    colour: str | None = None
    """A colour of its own, in place of accent or grey."""
    dashed: bool = False
    ringed: tuple[int, ...] = ()
    """Indices of measured points that are drawn with a ring around them."""
    faint: bool = False
    """Pale and without a place in the legend: one of several that another line sums up."""


def svg_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    size: tuple[float, float],
    name: str,
    floor: float | None = None,
    log_x: bool = False,
    ticks: Sequence[float] | None = None,
) -> Markup:
    """Return a chart as an SVG element.

    Args:
        name: of the chart, for ids that stay the same.
        floor: where the ordinate starts; None leaves it to the values.
        log_x: whether the abscissa is logarithmic.
        ticks: the only places on the abscissa that are written.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw_chart(figure.add_subplot(), lines, x_label, y_label, floor=floor, log_x=log_x, ticks=ticks)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Groups are numbered from 1 in every figure, and an id may stand only once on a page; the kept ones are salted hashes.
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    return Markup(re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1))


def draw_chart(
    axes: Any,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    floor: float | None = None,
    log_x: bool = False,
    ticks: Sequence[float] | None = None,
) -> None:
    """Draw lines into matplotlib axes; see `svg_chart`."""
    for line in lines:
        style = {"linestyle": (0, (4, 2)) if line.dashed else "-"}
        if line.measured and not line.faint:
            axes.errorbar(
                line.x, line.y, yerr=line.error, color=line.colour or ACCENT, linewidth=2, marker="o", markersize=5,
                markeredgecolor="white", capsize=0, elinewidth=1.2, label=line.label, zorder=3, **style,
            )  # fmt: skip
            x, y = [line.x[i] for i in line.ringed], [line.y[i] for i in line.ringed]
            axes.plot(x, y, "o", markersize=10, markerfacecolor="none", markeredgecolor=line.colour or ACCENT, zorder=4)
        elif line.faint:
            axes.plot(*_thinned(line.x, line.y), color=line.colour or ACCENT, linewidth=1, alpha=0.35, **style)
        else:
            colour = line.colour or ("#8a939e" if len(lines) > 1 else ACCENT)
            axes.plot(
                *_thinned(line.x, line.y), color=colour, linewidth=1.2 if line.colour is None else 2, label=line.label, **style
            )
    if floor is not None:
        highest = max(max(y + e for y, e in zip(line.y, line.error or [0.0] * len(line.y), strict=True)) for line in lines)
        axes.set_ylim(floor, floor + 1.08 * (highest - floor) if highest > floor else floor + 1)
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if ticks is not None:
        axes.set_xticks(list(ticks))
    axes.xaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(x=0.03)
    axes.tick_params(length=3)
    if sum(not line.faint for line in lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _thinned(x: Sequence[float], y: Sequence[float], most: int = 400) -> tuple[list[float], list[float]]:
    """Return at most `most` points: means of neighbours, so that a long run makes no large page."""
    if len(x) <= most:
        return list(x), list(y)
    parts = [np.array_split(np.asarray(values), most) for values in (x, y)]
    xs, ys = ([float(part.mean()) for part in column] for column in parts)
    return xs, ys


def curves(run: Run) -> list[dict[str, Any]]:
    """Return the learning curve, over time and over scored images."""
    charts = []
    for key, title in (("seconds", "Against time"), ("reward_queries", "Against reward queries")):
        lines, x_label, y_label = learning_curve(run, key)
        if lines:
            charts.append({"title": title, "svg": svg_chart(lines, x_label, y_label, size=LARGE, name=key)})
    return charts


def learning_curve(run: Run, key: str) -> tuple[list[Line], str, str]:
    """Return the lines of the learning curve and the labels of its axes; no lines where there is nothing to draw.

    Args:
        key: "seconds" or "reward_queries", the abscissa.
    """
    metric = run.metric
    label = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    arrow = "lower is better" if metric.lower_is_better else "higher is better"
    queries = {row["round"]: row.get("reward_queries") for row in run.rounds} | {0: 0}
    minutes = (run.seconds or 0) > 180
    scale = 60.0 if minutes and key == "seconds" else 1.0
    training = [(finite(row.get(key)), metric.of_round(row)) for row in run.rounds]
    measured = [
        (finite(e.get("seconds") if key == "seconds" else queries.get(e["round"])), metric.interval(e)) for e in run.evaluations
    ]
    points = [(x / scale, y) for x, y in training if x is not None and y is not None]
    checks = [(x / scale, *found) for x, found in measured if x is not None and found is not None]
    lines = []
    if len(points) > 1:
        lines.append(Line("rounds of training", [x for x, _ in points], [y for _, y in points]))
    if checks:
        xs, ys, errors = (list(column) for column in zip(*checks, strict=True))
        lines.append(Line("fixed prompts and seeds, with 95 % interval", xs, ys, errors, measured=True))
    if len(points) < 2 and len(checks) < 2:
        lines = []
    x_label = f"{'minutes' if minutes else 'seconds'} of sampling and learning" if key == "seconds" else "images scored"
    return lines, x_label, f"{label}, {arrow}"


def guards(run: Run) -> list[dict[str, Any]]:
    """Return small charts of what should not change while the reward does."""
    charts = []
    for label in dict.fromkeys(k for e in run.evaluations for k in mapping(e.get("held_out"))):
        found = [(e["round"], *mean_and_half(mapping(e.get("held_out")).get(label))) for e in run.evaluations]
        points = [(x, y, half) for x, y, half in found if y is not None]
        charts.append((f"Held out: {label}", points, "", f"held_out/{label}"))
    for question in dict.fromkeys(q for e in run.evaluations for q in mapping(e.get("judge"))):
        found = [(e["round"], *mean_and_half(mapping(e.get("judge")).get(question))) for e in run.evaluations]
        points = [(x, 100 * y, 100 * half) for x, y, half in found if y is not None]
        charts.append((f"Judge: {asked(question)}", points, "%", f"judge/{question}"))
    for key in dict.fromkeys(k for e in run.evaluations for k in mapping(e.get("guard"))):
        found = [(e["round"], finite(mapping(e.get("guard")).get(key)), 0.0) for e in run.evaluations]
        title = titled(key)
        charts.append((title[:1].upper() + title[1:], [(x, y, h) for x, y, h in found if y is not None], "", key))
    drawn = []
    for title, points, unit, key in charts:
        if len(points) > 1:
            xs, ys, errors = (list(column) for column in zip(*points, strict=True))
            line = Line("", xs, ys, errors, measured=True)
            # Guards start at 0, so that a small change looks small; shares near 100 % would then be all alike.
            floor: float | None = 80.0 if unit == "%" and min(points, key=lambda p: p[1] - p[2])[1] > 85 else 0.0
            if key.startswith("held_out/"):
                floor = None  # a reward has no natural zero
            svg = svg_chart([line], "round", unit, size=SMALL, name=key, floor=floor)
            drawn.append({"title": title, "meaning": meaning_of(key), "svg": svg})
    return drawn + round_charts(run, ("kl",))


def round_charts(run: Run, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return small charts of columns of metrics.jsonl."""
    drawn = []
    for key in keys:
        points = [(row["round"], value) for row in run.rounds if (value := finite(row.get(key))) is not None]
        if len(points) > 1:
            line = Line("", [x for x, _ in points], [y for _, y in points])
            title = {"kl": "KL divergence", "lr": "Learning rate"}.get(key, key.replace("_", " ").capitalize())
            svg = svg_chart([line], "round", "", size=SMALL, name=key)
            drawn.append({"title": title, "meaning": meaning_of(key), "svg": svg})
    return drawn
