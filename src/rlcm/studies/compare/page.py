"""The page of a comparison: one file that needs no other and no network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rlcm.errors import UnreadableFileError, UsageError
from rlcm.report.drawing import LARGE, PALETTE, Line, svg_chart
from rlcm.report.encoding import data_uris
from rlcm.report.metric import Metric
from rlcm.report.page import render_page
from rlcm.report.run import Run
from rlcm.report.samples import Samples
from rlcm.report.values import finite
from rlcm.report.words import asked, counted, decimals, duration, meaning_of, titled, with_unit, written
from rlcm.runs.files import read_json
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_bytes, write_json
from rlcm.studies.compare.methods import Method, measured_alike, reward_sign
from rlcm.studies.compare.speedup import AXES, mean_curve

STRIP = 8
"""Pictures in a strip."""
COUNTED = {"seconds": "sampling and learning", "reward_queries": "images scored", "network_calls": "network calls"}


def write_comparison(
    methods: Sequence[Method], metric: Metric, warnings: Sequence[str], found: Mapping[str, Any], page: Path
) -> Path:
    """Write the page, and beside it what it shows as JSON; return the page's path.

    Args:
        found: what `compare` returned for the methods.

    Raises:
        UsageError: if one of them would replace a file that no comparison is.
        RunDirectoryError: if they cannot be written.
    """
    require_place(page)
    values = {
        "headline": headline(found, metric, warnings),
        "baseline": found["baseline"],
        "facts": _facts(methods),
        "warnings": warnings,
        "metric": metric,
        "curves": charts(methods, metric),
        "finals": final_table(found, metric),
        "speedups": speedup_tables(found, metric),
        "strips": strips(methods, metric),
        "settings": _settings(methods),
        "runs": _links(methods, page.parent),
    }
    with disk_errors(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_json(page.with_suffix(".json"), dict(found) | {"metric": metric.label, "warnings": list(warnings)})
        write_bytes(page, render_page("studies/compare/templates/compare.html.jinja", values).encode())
    return page


def require_place(
    page: Path, keys: Sequence[str] = ("baseline", "methods", "targets"), suffixes: Sequence[str] = (".json",)
) -> None:
    """Do nothing if a comparison may be written as this page, and beside it as JSON.

    Args:
        keys: by which the JSON of an earlier one is known.
        suffixes: of all files beside the page.

    Raises:
        UsageError: if there is a file that no comparison is.
    """
    try:
        found = read_json(page.with_suffix(".json"))
        ours = isinstance(found, dict) and set(keys) <= set(found)
    except UnreadableFileError:
        ours = False
    there = [file for file in (page, *map(page.with_suffix, suffixes)) if os.path.lexists(file)]
    if there and not ours:
        raise UsageError(
            f"-o {str(page)!r} would replace {there[-1]}, which `rlcm compare` did not write; choose another name with -o, or move "
            "it away."
        )


def headline(found: Mapping[str, Any], metric: Metric, warnings: Sequence[str] = ()) -> tuple[str, str, str]:
    """Return the sentence that says who is how much sooner, in three parts; the middle one is emphasised.

    Args:
        warnings: what speaks against the comparison; where the runs were not measured alike, nobody is said to be ahead.
    """
    if not measured_alike(warnings):
        return "The runs were not measured alike, so ", "nobody can be said to be ahead", "; the warnings say why."
    baseline, count = found["baseline"], len(found["methods"])
    others = [method["name"] for method in found["methods"] if method["name"] != baseline]
    if not others:
        return "", counted(count, "method"), " and its rewards."
    if not found["targets"]:
        start = f"its mean {metric.label} before training"
        return f"Not every seed of {baseline} improves on ", start, ", so there is nothing to reach sooner."
    last = found["targets"][-1]
    reward = with_unit(metric.shown(last["reward"]), metric.unit)
    there = {name: entry["seconds"] for name, entry in last["methods"].items()}
    best = max(others, key=lambda name: there[name].get("speedup", 0.0))
    entry = there[best]
    if "speedup" not in entry:
        before, after = _why_not(there, baseline, others)
        return before, f"{baseline}'s {metric.label} of {reward}", after
    speedup = entry["speedup"]
    times = f"{written(speedup)} times sooner" if speedup >= 1 else f"{written(1 / speedup)} times later"
    interval = _interval(entry) if speedup >= 1 else ""
    return f"{best} reaches {baseline}'s {metric.label} of {reward} ", times, f"{interval}."


def _why_not(there: Mapping[str, Mapping[str, Any]], baseline: str, others: Sequence[str]) -> tuple[str, str]:
    """Return what stands before and after the baseline's reward where no method has a ratio of times to it."""
    if 0 in there[baseline]["at"]:
        return f"A seed of {baseline} had ", " before training, so no time to it can be compared."
    ahead = [name for name in others if there[name].get("from_start")]
    if ahead:
        return f"{' and '.join(ahead)} had more than ", " before training."
    short = [name for name in others if there[name]["reached"] < there[name]["of"]]
    if short:
        return f"Not every seed of {' or '.join(short)} reaches ", "."
    return f"A seed of {' and of '.join(others)} had more than ", " before training, so no time to it can be compared."


def charts(methods: Sequence[Method], metric: Metric) -> list[dict[str, Any]]:
    """Return the reward over time, reward queries and network calls: every seed pale, their mean strong."""
    unit = f" ({metric.unit})" if metric.unit else ""
    y_label = f"{metric.label}{unit}, {'lower' if metric.lower_is_better else 'higher'} is better"
    sign = -1.0 if metric.lower_is_better else 1.0
    drawn = []
    for axis, name in AXES.items():
        ends = [getattr(curve, axis)[-1] for method in methods for curve in method.curves if len(curve.reward) > 1]
        if not ends or min(ends) <= 0:
            continue
        far_apart = max(ends) > 5 * min(ends)
        minutes = axis == "seconds" and not far_apart and max(ends) > 180
        lines = []
        for place, method in enumerate(methods):
            colour = PALETTE[place % len(PALETTE)]
            each = method.curves if len(method.curves) > 1 else []
            pale = [_points(getattr(curve, axis), curve.reward, sign, minutes, far_apart) for curve in each]
            lines += [Line("", xs, ys, colour=colour, faint=True) for xs, ys in pale if xs]
            x, y = mean_curve(method.curves, axis)
            xs, ys = _points(x, y, sign, minutes, far_apart)
            seeds = f", mean of {len(method.curves)} seeds" if len(method.curves) > 1 else ""
            if xs:
                lines.append(Line(method.name + seeds, xs, ys, measured=True, colour=colour))
        x_label = COUNTED[axis] if axis != "seconds" else f"{'minutes' if minutes else 'seconds'} of {COUNTED[axis]}"
        svg = svg_chart(lines, x_label, y_label, size=LARGE, name=f"compare-{axis}", log_x=far_apart)
        drawn.append({"title": f"Against {name}", "svg": svg, "meaning": "Logarithmic." if far_apart else ""})
    return drawn


def final_table(found: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """Return what each method cost and ended with."""
    keys = [
        (group, key)
        for group in ("judge", "held_out", "guard")
        for key in dict.fromkeys(key for method in found["methods"] for key in method[group])
    ]
    heads = ["method", "seeds", "before", "after", "time", "images scored", "network calls"]
    names = {"held_out": "{}, held out", "guard": "{}"}
    heads += [f"judge: {asked(key)}, %" if group == "judge" else names[group].format(titled(key)) for group, key in keys]
    rows = []
    for method in found["methods"]:
        shown = [_shown(method.get(when), -1.0 if metric.lower_is_better else 1.0, metric.unit) for when in ("before", "after")]
        time = finite(method.get("seconds", {}).get("mean"))
        counts = [method.get(axis, {}).get("mean") for axis in ("reward_queries", "network_calls")]
        rows.append(
            [method["name"], str(len(method["runs"])), *shown, "" if time is None else duration(time)]
            + ["" if count is None else f"{count:,.0f}" for count in counts]
            + [_shown(method[group].get(key), 100.0 if group == "judge" else 1.0, "") for group, key in keys]
        )
    meanings = [
        f"{titled(key)[:1].upper()}{titled(key)[1:]}: {text[:1].lower()}{text[1:]}"
        for group, key in keys
        if (text := meaning_of(key)) and group == "guard"
    ]
    return {"heads": heads, "rows": rows, "meanings": meanings}


def speedup_tables(found: Mapping[str, Any], metric: Metric) -> list[dict[str, Any]]:
    """Return, for every axis, how many times sooner each method was there."""
    tables = []
    targets = found["targets"]
    for axis, name in AXES.items() if targets else []:
        heads = ["method"] + [
            f"{target['share']:.0%} of the gain: {with_unit(metric.shown(target['reward']), metric.unit)}" for target in targets
        ]
        rows = []
        for method in found["methods"]:
            entries = [target["methods"][method["name"]][axis] for target in targets]
            rows.append(
                [method["name"], *[_speedup_cell(entry, axis, method["name"] == found["baseline"]) for entry in entries]]
            )
        tables.append({"title": f"In {name}", "heads": heads, "rows": rows})
    return tables


def strips(methods: Sequence[Method], metric: Metric) -> list[dict[str, Any]]:
    """Return rows of pictures of the same prompts and seeds: each model before tuning, and each method's first run after."""
    rows: list[tuple[str, Run, Samples]] = []
    models: dict[str, None] = {}
    for method in methods:
        run = method.runs[0]
        if not run.samples:
            continue
        final = next((samples for samples in run.samples if samples.round == run.final_round), run.samples[-1])
        model = str(dict(run.config.get("model") or {}).get("path", ""))
        if model not in models and len(run.samples) > 1:
            models[model] = None
            rows.append((f"{model or 'the model'}, untuned", run, run.samples[0]))
        rows.append((f"{method.name}, round {final.round}", run, final))
    keys = [samples.keys for _, _, samples in rows]
    common = [key for key in keys[0] if all(key in others for others in keys)][:STRIP] if keys else []
    if not common:
        return []
    places = [[own.index(key) for key in common] for own in keys]
    shots = [run.shots(samples, chosen) for (_, run, samples), chosen in zip(rows, places, strict=True)]
    uris = iter(data_uris([shot.picture for row in shots for shot in row], 3_000_000))
    sign = reward_sign([run for method in methods for run in method.runs], metric.reward)
    values = [[_value(samples, i, metric, sign) for i in chosen] for (_, _, samples), chosen in zip(rows, places, strict=True)]
    digits = decimals(*(value for row in values for value in row if value is not None))
    return [
        {
            "name": name,
            "tuned": "untuned" not in name,
            "shots": [
                {
                    "uri": next(uris),
                    "prompt": prompt,
                    "value": with_unit(value, metric.unit, digits),
                    "verdicts": shot.verdicts,
                }
                for shot, value, (prompt, _) in zip(row, own, common, strict=True)
            ],
        }
        for (name, _, _), row, own in zip(rows, shots, values, strict=True)
    ]


def _value(samples: Samples, index: int, metric: Metric, sign: float) -> float | None:
    """Return a picture's reward as the curves show it; None where the samples do not tell it, as of one that was held out."""
    values = samples.rewards.get(metric.reward or "total")
    number = finite(values[index]) if isinstance(values, list) and index < len(values) else None
    return None if number is None else metric.shown(sign * number)


def _points(x: Sequence[float], y: Sequence[float], sign: float, minutes: bool, log: bool) -> tuple[list[float], list[float]]:
    kept = [
        (place / (60.0 if minutes else 1.0), sign * value) for place, value in zip(x, y, strict=True) if place > 0 or not log
    ]
    return [place for place, _ in kept], [value for _, value in kept]


def _speedup_cell(entry: Mapping[str, Any], axis: str, baseline: bool) -> str:
    if entry["reached"] < entry["of"]:
        return f"reached by {entry['reached']} of {entry['of']} seeds"
    if entry.get("from_start"):
        return "before training"
    there = [value for value in entry["at"] if value is not None]
    mean = sum(there) / len(there)
    at = duration(mean) if axis == "seconds" else f"{mean:,.0f}"
    if baseline or "speedup" not in entry:
        return at
    return f"{written(entry['speedup'])} ×{_interval(entry)} · {at}"


def _interval(entry: Mapping[str, Any]) -> str:
    interval = entry.get("interval")
    return f" ({written(interval[0])} to {written(interval[1])})" if interval else ""


def _shown(value: Mapping[str, Any] | None, scale: float, unit: str) -> str:
    mean = finite((value or {}).get("mean"))
    if mean is None:
        return ""
    half, text = finite((value or {}).get("ci95")), written(scale * mean)
    places = len(text.partition(".")[2])
    return text + (f" ± {written(abs(scale) * half, places)}" if half else "") + (f" {unit}" if unit else "")


def _facts(methods: Sequence[Method]) -> list[str]:
    runs = sum(len(method.runs) for method in methods)
    models = dict.fromkeys(str(dict(m.runs[0].config.get("model") or {}).get("path", "")) for m in methods)
    return [f"{runs} runs", f"{len(methods)} methods", *(model for model in models if model)]


def _settings(methods: Sequence[Method]) -> dict[str, Any]:
    """Return where the methods' configurations differ."""
    keys = list(methods[0].settings)
    rows = [[key, *("" if method.settings[key] is None else str(method.settings[key]) for method in methods)] for key in keys]
    return {"heads": ["setting", *[method.name for method in methods]], "rows": rows}


def _links(methods: Sequence[Method], folder: Path) -> list[dict[str, str]]:
    """Return the runs' pages, or folders, relative to the comparison's."""
    rows = []
    for method in methods:
        for run in method.runs:
            target = run.path / "report.html" if (run.path / "report.html").is_file() else run.path
            href = quote(os.path.relpath(target.resolve(), folder.resolve()))
            rows.append({"name": str(run.path), "href": href, "method": method.name, "seed": str(run.config.get("seed", ""))})
    return rows
