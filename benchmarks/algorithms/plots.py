"""The study's plots: one picture a task, reward over time and over reward queries, and the held-out judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.algorithms.methods import DDPO, METHODS, PLAIN, TASKS

INK, MUTED, LINE = "#1d2126", "#6a727c", "#d9dde2"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "rlcm", "font.size": 10, "axes.edgecolor": LINE, "axes.labelcolor": MUTED,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#eceef1",
    "axes.axisbelow": True, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titlecolor": INK,
}  # fmt: skip


def draw_task(task: str, found: Mapping[str, Any], file: Path) -> None:
    """Write a task's picture; its format is that of the file's ending."""
    unit = TASKS[task].unit
    panels = (
        ("cpu", "reward over time", "CPU seconds of training", f"reward ({unit})"),
        ("reward_queries", "reward over reward queries", "images scored", ""),
        ("judge", "held-out judge over time", "CPU seconds of training", "right pictures (%)"),
    )
    methods = found["methods"]
    order = sorted(methods, key=lambda name: methods[name]["reward"]["mean"], reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.4, 3.9), layout="constrained")
        # The judge's own column is narrower: most of its lines lie on one another.
        axes = figure.subplots(1, 3, width_ratios=(1.15, 1.15, 0.9))
        handles: dict[str, Any] = {}
        for place, (curve, title, x_label, y_label) in zip(axes, panels, strict=True):
            scale = 100.0 if curve == "judge" else 1.0
            for name in reversed(order):
                points = {key: [scale * v if key != "x" else v for v in c] for key, c in methods[name]["curves"][curve].items()}
                colour = METHODS[name].colour
                plain = name == PLAIN
                place.fill_between(points["x"], points["low"], points["high"], color=colour, alpha=0.1, linewidth=0)
                (handles[name],) = place.plot(
                    points["x"], points["mean"], color=colour, linewidth=2.6 if plain else 1.7, zorder=4 if plain else 3
                )
            if curve == "judge" and not TASKS[task].asks:
                # At least ten points, so that one image more or less looks like one.
                place.set_ylim(min(90.0, place.get_ylim()[0]), 100.6)
            elif curve != "judge":
                place.axhline(found["target"], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
            place.set_title(title)
            place.set_xlabel(x_label)
            place.set_ylabel(y_label)
            place.margins(x=0.01)
            place.set_xlim(left=0)
            place.xaxis.set_major_formatter("{x:,.10g}")
            place.tick_params(length=3)
            place.locator_params(axis="x", nbins=5)  # longer numbers would touch
        _legend(figure, {f"{name}  {methods[name]['reward']['mean']:.3g}": handles[name] for name in order})
        _save(figure, file)


def ddpo_picture(task: str) -> str:
    """Return the name of the picture that holds DDPO against the others on a task."""
    return f"algorithms-{task.replace('_', '-')}-ddpo.svg"


def draw_ddpo(task: str, found: Mapping[str, Any], file: Path) -> None:
    """Write reward over time of DDPO and of the others; the time is logarithmic, as DDPO's is so much longer."""
    methods = found["methods"]
    order = sorted(methods, key=lambda name: methods[name]["reward"]["mean"], reverse=True)
    variants = found[DDPO]["variants"]
    curves = {name: methods[name]["curves"]["cpu"] for name in order} | {name: one["curve"] for name, one in variants.items()}
    ends = {name: methods[name]["reward"]["mean"] for name in order}
    ends |= {name: one["reward"]["mean"] for name, one in variants.items()}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        place = figure.subplots()
        handles = {}
        for name, points in reversed(curves.items()):
            own = name in variants
            colour = METHODS[name].colour
            # Before training there is no time on such an axis.
            rows = {key: values[1:] for key, values in points.items()}
            place.fill_between(rows["x"], rows["low"], rows["high"], color=colour, alpha=0.1, linewidth=0)
            (handles[name],) = place.plot(
                rows["x"], rows["mean"], color=colour, linewidth=2.6 if own else 1.7, linestyle="--" if own else "-"
            )
        place.set_xscale("log")
        place.set_xlabel("CPU seconds of training (logarithmic)")
        place.set_ylabel(f"reward ({TASKS[task].unit})")
        place.xaxis.set_major_formatter("{x:,.10g}")
        _legend(figure, {f"{name}  {ends[name]:.3g}": handles[name] for name in curves})
        _save(figure, file)


def _legend(figure: Figure, lines: Mapping[str, Any]) -> None:
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside right center",
        frameon=False,
        labelcolor=INK,
        fontsize=9.5,
        title="best sound reward",
        title_fontsize=9.5,
        alignment="left",
    )


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None, "Creator": None} if file.suffix == ".svg" else None, dpi=110)


def draw_all(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write every task's picture and return their names by task."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {task: f"algorithms-{task.replace('_', '-')}.svg" for task in summary["tasks"]}
    for task, name in names.items():
        draw_task(task, summary["tasks"][task], folder / name)
        if DDPO in summary["tasks"][task]:
            draw_ddpo(task, summary["tasks"][task], folder / ddpo_picture(task))
    return names
