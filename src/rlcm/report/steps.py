"""What a study of numbers of steps says: its lines, its charts and its table. A study is the content of a study's eval.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from rlcm.report.drawing import LARGE, MUTED, PALETTE, STYLE, Line, draw_chart, svg_chart
from rlcm.report.encoding import data_uris
from rlcm.report.values import finite, mapping, mean_and_half
from rlcm.report.words import asked, written
from rlcm.runs.serialization import replacing

SPEED = "images per second, sampling and decoding"


def rewards_of(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the components of a study's rewards: how each is shown, what is better, and whether the run was trained on it."""
    labels = dict.fromkeys(label for row in rows_of(study) for label in mapping(row.get("rewards")))
    settings = {str(mapping(r).get("label")): mapping(r) for r in _list(study.get("rewards"))}
    found = []
    for label in labels:
        entry = settings.get(label) or settings.get(label.partition("/")[0], {})
        display = mapping(entry.get("display"))
        lower, penalty = display.get("better") == "lower", (finite(entry.get("weight")) or 0.0) < 0
        found.append(
            {
                "label": label,
                "title": str(display.get("label") or label.replace("_", " ")),
                "unit": str(display.get("unit") or ""),
                "sign": -1.0 if lower else 1.0,
                "lower_is_better": lower != penalty,
                "trained": entry.get("trained") is not False,
            }
        )
    return found


def rows_of(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measurements that can be read."""
    return [row for row in _list(study.get("results")) if isinstance(row, dict) and finite(row.get("steps")) is not None]


def lines_of(study: Mapping[str, Any], reward: Mapping[str, Any], against: str, group: str | None = None) -> list[Line]:
    """Return a line for every model and set, of a reward with its interval.

    Args:
        against: "steps" or "images_per_second".
        group: only this set.
    """
    rows = rows_of(study)
    models = list(dict.fromkeys(str(row.get("model")) for row in rows))
    groups = list(dict.fromkeys(str(row.get("set")) for row in rows))
    lines = []
    for place, name in enumerate(groups):
        for model in models:
            points = []
            for row in rows:
                mean, half = mean_and_half(mapping(row.get("rewards")).get(reward["label"]))
                x = finite(row.get(against))
                if (row.get("set"), row.get("model")) == (name, model) and x is not None and mean is not None:
                    points.append((row["steps"], x, reward["sign"] * mean, half))
            if points and group in (None, name):
                _, xs, ys, errors = (list(column) for column in zip(*sorted(points), strict=True))
                label = " · ".join(part for part in (model if len(models) > 1 else "", name if group is None else "") if part)
                colour = MUTED if model == "base" and group else PALETTE[place % len(PALETTE)]
                lines.append(Line(label, xs, ys, errors, True, colour, dashed=model == "base" and len(models) > 1))
    return lines


def step_charts(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the page's charts: every reward against steps, and against speed, on the first set."""
    first = str(rows_of(study)[0].get("set")) if rows_of(study) else ""
    charts = []
    for reward in rewards_of(study):
        label = y_label(reward)
        for against, x_label, title in (("steps", "denoising steps", "steps"), ("images_per_second", SPEED, "speed")):
            lines = lines_of(study, reward, against, first)
            if any(len(line.x) > 1 for line in lines):
                ticks = sorted({x for line in lines for x in line.x}) if against == "steps" else None
                svg = svg_chart(lines, x_label, label, size=LARGE, name=f"{reward['label']}-{against}", log_x=True, ticks=ticks)
                charts.append(
                    {
                        "title": f"{reward['title']} against {title}",
                        "svg": svg,
                        "meaning": "" if reward["trained"] else "Held out: not trained on.",
                    }
                )
    return charts


def write_plots(study: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a PNG for every reward, against steps and against speed with all sets in it; return their paths."""
    paths = []
    for place, reward in enumerate(rewards_of(study)):
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(12, 4.6), layout="constrained")
            left, right = figure.subplots(1, 2, sharey=True)
            for axes, against, x_label in ((left, "steps", "denoising steps"), (right, "images_per_second", SPEED)):
                lines = lines_of(study, reward, against)
                ticks = sorted({x for line in lines for x in line.x}) if against == "steps" else None
                draw_chart(axes, lines, x_label, y_label(reward) if axes is left else "", log_x=True, ticks=ticks)
            figure.suptitle(f"{reward['title']}, with 95 % intervals{held_out_note(reward, ', ')}", color=MUTED, fontsize=11)
            path = folder / f"reward-{place + 1}.png"
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=110)
        paths.append(path)
    return paths


def step_tables(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a table for every set: its title, its heads and its rows of texts."""
    rewards, rows = rewards_of(study), rows_of(study)
    described = {str(mapping(g).get("name")): mapping(g) for g in _list(study.get("sets"))}
    several = len({row.get("model") for row in rows}) > 1
    tables = []
    for name in dict.fromkeys(str(row.get("set")) for row in rows):
        own = [row for row in rows if row.get("set") == name]
        group = described.get(name, {})
        questions = list(dict.fromkeys(q for row in own for q in mapping(row.get("judge"))))
        lines = []
        for row in sorted(own, key=lambda r: (r["steps"], r.get("model") != "base")):
            cells = [f"{row['steps']:.0f}", *([str(row.get("model"))] if several else [])]
            cells += [_shown(mapping(row.get("rewards")).get(r["label"]), r["sign"]) for r in rewards]
            cells += [_shown(mapping(row.get("judge")).get(q), 100.0, 1) for q in questions]
            speed = finite(row.get("images_per_second"))
            lines.append([*cells, "" if speed is None else written(speed)])
        heads = ["steps", *(["model"] if several else [])]
        heads += [r["title"] + (f", {r['unit']}" if r["unit"] else "") + held_out_note(r, ", ") for r in rewards]
        heads += [f"judge: {asked(question)}, %" for question in questions] + ["images/s"]
        tables.append({"title": f"{name}: {_about(group, own)}", "heads": heads, "rows": lines})
    return tables


def study_section(study: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the page's section of a study; an empty mapping where there is none.

    Args:
        folder: where the study's pictures are.
    """
    if not rows_of(study):
        return {}
    sheets, pictures = [], []
    for entry in map(mapping, _list(study.get("pictures"))):
        try:
            with Image.open(folder / str(entry["file"])) as picture:
                pictures.append(picture.convert("RGB"))
        except (OSError, KeyError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        sheets.append(
            {
                "set": str(entry.get("set")),
                "model": str(entry.get("model")),
                "steps": [str(count) for count in _list(entry.get("steps"))],
                "prompts": [str(prompt) for prompt in _list(entry.get("prompts"))],
            }
        )
    for sheet, uri in zip(sheets, data_uris(pictures, 900_000, sheets=True), strict=True):
        sheet["uri"] = uri
    by_set = {name: [sheet for sheet in sheets if sheet["set"] == name] for name in dict.fromkeys(s["set"] for s in sheets)}
    return {
        "charts": step_charts(study),
        "tables": step_tables(study),
        "sheets": by_set,
        "own": finite(study.get("own_steps")),
        "machine": str(study.get("machine") or ""),
    }


def y_label(reward: Mapping[str, Any]) -> str:
    """Return what stands beside a reward's axis."""
    unit = f" ({reward['unit']})" if reward["unit"] else ""
    return f"{reward['title']}{unit}, {'lower' if reward['lower_is_better'] else 'higher'} is better"


def held_out_note(reward: Mapping[str, Any], before: str = "") -> str:
    """Return a mark for a reward that the run was not trained on."""
    return "" if reward["trained"] else f"{before}held out"


def _about(group: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    facts = [str(group["kind"])] if group.get("kind") and group["kind"] != group.get("name") else []
    prompts, trained = finite(group.get("prompts")), finite(group.get("trained"))
    images = finite(rows[0].get("images")) if rows else None
    facts += [f"{prompts:.0f} prompts"] if prompts else []
    facts += [f"{images:.0f} images a row"] if images else []
    facts += [f"{trained:.0f} of the prompts were trained on"] if trained and group.get("kind") != "train" else []
    return ", ".join(facts)


def _shown(value: Any, scale: float, digits: int | None = None) -> str:
    mean, half = mean_and_half(value)
    if mean is None:
        return ""
    text = written(scale * mean, digits)
    if half:
        places = len(text.partition(".")[2]) if digits is None else digits
        text += f" ± {written(abs(scale) * half, places)}"
    return text


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
