"""The page, the picture and the table of a frontier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlcm.report.drawing import LARGE, PALETTE, STYLE, Line, draw_chart, svg_chart
from rlcm.report.page import render_page
from rlcm.report.words import counted, titled, with_unit, written
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import replacing, write_bytes, write_json
from rlcm.studies.compare.page import require_place
from rlcm.studies.frontier.points import KEPT, OF_GAIN, Frontier, Point, Track, best_at, most_diverse_at, not_dominated

KEYS = ("tracks", "best", "measure")
"""By which the JSON of an earlier frontier is known."""
PALE = "#cfd5dc"
IN = {"diversity_judge": "in the judge's features", "diversity_clip": "in CLIP's features", "diversity": "in pixels"}
"""How a distance between pictures is measured, in words."""


def require_frontier_place(page: Path) -> None:
    """Do nothing if a frontier may be written as this page, and beside it as JSON and as a picture.

    Raises:
        UsageError: if there is a file that no frontier is.
    """
    require_place(page, KEYS, (".json", ".png"))


def write_frontier(found: Frontier, page: Path) -> Path:
    """Write the page, and beside it its picture (.png) and its numbers (.json); return the page's path.

    Raises:
        UsageError: if one of them would replace a file that no frontier is.
        RunDirectoryError: if they cannot be written.
    """
    require_frontier_place(page)
    panels = [Panel(found, measure) for measure in ("kl" if found.kl else None, found.measure, *found.others) if measure]
    values = {
        "headline": headline(found),
        "facts": [counted(sum(len(t.runs) for t in found.tracks if not t.free), "run")],
        "warnings": found.warnings,
        "charts": [{"title": p.title, "svg": p.svg(), "meaning": p.meaning} for p in panels],
        "table": table(found),
        "settings": _settings(found),
    }
    with disk_errors(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_json(page.with_suffix(".json"), described(found))
        _draw(panels[:2], page.with_suffix(".png"))
        write_bytes(page, render_page("studies/frontier/templates/frontier.html.jinja", values).encode())
    return page


class Panel:
    """One chart: the reward against the KL divergence, or against the share of the base model's diversity by a measure."""

    def __init__(self, found: Frontier, measure: str) -> None:
        self.measure = measure
        metric, sign = found.metric, -1.0 if found.metric.lower_is_better else 1.0
        unit = f" ({metric.unit})" if metric.unit else ""
        self.y_label = f"{metric.label}{unit}, {'lower' if metric.lower_is_better else 'higher'} is better"
        kl = measure == "kl"
        self.title = "Reward against KL divergence" if kl else f"Reward against {titled(measure)}"
        nats = "nats a picture" if found.kl == "evaluation" else "as in training"
        self.x_label = f"KL divergence to the base model, {nats}" if kl else "share of the base model's diversity, %"
        self.meaning = "Ringed: no other point has as much reward for as little divergence." if kl else (
            "Ringed: no other point has as much reward and as much diversity."
        )  # fmt: skip
        placed = [(t, [(x, p) for p in t.points if (x := _place(p, measure)) is not None]) for t in found.tracks]
        kept = [(x, point) for _, points in placed for x, point in points]
        best = {id(kept[i][1]) for i in not_dominated([(-x if kl else x, point.reward) for x, point in kept])}
        front = sorted({(x, point.reward) for x, point in kept if id(point) in best})
        self.lines = [Line("no better point", [x for x, _ in front], [sign * y for _, y in front], colour=PALE)]
        colours: dict[str, str] = {}
        for track, points in placed:
            colour = colours.setdefault(track.of, PALETTE[len(colours) % len(PALETTE)])
            if points:
                xs, ys = [x for x, _ in points], [sign * point.reward for _, point in points]
                halves = [0.0] * (len(points) - 1) + [points[-1][1].half or 0.0]  # all of them would hide the lines
                ringed = tuple(i for i, (_, point) in enumerate(points) if id(point) in best)
                self.lines.append(
                    Line(track.name, xs, ys, halves, measured=True, colour=colour, dashed=track.free, ringed=ringed)
                )

    def svg(self) -> Any:
        """Return the chart as an SVG element."""
        return svg_chart(self.lines, self.x_label, self.y_label, size=LARGE, name=f"frontier-{self.measure}")

    def draw(self, axes: Any) -> None:
        """Draw the chart into matplotlib axes."""
        draw_chart(axes, self.lines, self.x_label, self.y_label)


def headline(found: Frontier) -> str:
    """Return in a sentence what the largest reward costs, or what keeps its diversity."""
    metric, best = found.metric, found.best
    if best["reward"] <= best["base"]:
        return f"No run improves its {metric.noun} on the fixed set."
    top = max((p for track in found.tracks for p in track.points), key=lambda p: p.reward)
    track = next(track for track in found.tracks if any(p is top for p in track.points))
    name = f"{track.of} at {top.about}" if track.free else track.name
    text = f"{name} reaches the best {metric.label}, {_reward(found, top)}"
    if found.measure in top.shares:
        text += f", with {top.shares[found.measure]:.0%} of the base model's diversity"
    return text + "."


def table(found: Frontier) -> dict[str, Any]:
    """Return for each method the best reward at shares of the base model's diversity, and its diversity near the best reward."""
    metric, measure = found.metric, found.measure
    target = with_unit(metric.shown(found.best["target"]), metric.unit)
    heads = ["method", "seeds", "best"]
    heads += [f"at ≥ {share:.0%} of the diversity" for share in KEPT] if measure else []
    heads += [f"diversity at {OF_GAIN:.0%} of the largest gain ({target})"] if measure else []
    heads += ["KL at its best"] if found.kl else []
    rows = []
    for track in found.tracks:
        top = max(track.points, key=lambda point: point.reward)
        row = [track.name, "free" if track.free else str(len(track.runs)), _with_interval(found, top)]
        if measure:
            row += [_with_interval(found, best_at(track.points, measure, share)) for share in KEPT]
            there = most_diverse_at(track.points, measure, found.best["target"])
            gained = found.best["reward"] > found.best["base"]
            row.append(f"{there.shares[measure]:.0%} ({there.about})" if there and gained else "not reached")
        row += ["" if top.kl is None else written(top.kl)] if found.kl else []
        rows.append(row)
    note = f"Diversity is measured {IN[measure]}, as a share of the base model's. " if measure else ""
    note += "± is a 95 % interval over seeds, of a single seed over images. In brackets: which evaluation it is."
    return {"heads": heads, "rows": rows, "note": note}


def print_table(found: Frontier) -> None:
    """Print the table."""
    described = table(found)
    shown = Table(title=Text(headline(found)), title_justify="left", box=None, pad_edge=False)
    for head in described["heads"]:
        shown.add_column(Text(head.replace(" of the ", "\nof the ", 1)), justify="right", no_wrap=True)
    for row in described["rows"]:
        shown.add_row(*map(Text, row))
    console = Console(width=1000)
    console.print(shown, markup=False)
    console.print(Text(described["note"]))


def described(found: Frontier) -> dict[str, Any]:
    """Return all numbers, as JSON has them."""
    measure = found.measure
    return {
        "reward": found.metric.label,
        "measure": measure,
        "kl": found.kl,
        "best": found.best,
        "warnings": found.warnings,
        "tracks": [_described(track, measure, found.best["target"]) for track in found.tracks],
    }


def _described(track: Track, measure: str | None, target: float) -> dict[str, Any]:
    fields = ("name", "free", "seeds", "runs", "settings")
    found: dict[str, Any] = {name: getattr(track, name) for name in fields}
    names = {"about": "about", "reward": "reward", "half": "ci95", "kl": "kl", "shares": "shares"}
    found["points"] = [{name: getattr(point, field) for field, name in names.items()} for point in track.points]
    if measure:
        kept = {f"{share:g}": best_at(track.points, measure, share) for share in KEPT}
        found["best_at"] = {share: None if point is None else point.reward for share, point in kept.items()}
        there = most_diverse_at(track.points, measure, target)
        found["diversity_at_target"] = None if there is None else there.shares[measure]
    return found


def _place(point: Point, measure: str) -> float | None:
    if measure == "kl":
        return point.kl
    return 100 * point.shares[measure] if measure in point.shares else None


def _reward(found: Frontier, point: Point) -> str:
    return with_unit(found.metric.shown(point.reward), found.metric.unit)


def _with_interval(found: Frontier, point: Point | None) -> str:
    if point is None:
        return "none"
    text = written(found.metric.shown(point.reward) or 0.0)
    half = f" ± {written(point.half, len(text.partition('.')[2]))}" if point.half else ""
    return f"{text}{half}{' ' + found.metric.unit if found.metric.unit else ''} ({point.about})"


def _settings(found: Frontier) -> dict[str, Any]:
    """Return where the methods' configurations differ."""
    tracks = [track for track in found.tracks if not track.free]
    keys = list(tracks[0].settings)
    rows = [[key, *("" if track.settings[key] is None else str(track.settings[key]) for track in tracks)] for key in keys]
    return {"heads": ["setting", *(track.name for track in tracks)], "rows": rows}


def _draw(panels: Sequence[Panel], file: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6 * len(panels), 4.2), layout="constrained", dpi=150)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            panel.draw(axes)
            if panel is not panels[0] and (legend := axes.get_legend()):
                legend.remove()  # the lines are those of the first
        with replacing(file) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
