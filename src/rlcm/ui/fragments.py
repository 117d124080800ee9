"""The parts of the page as HTML, made of the report's own charts, pictures and words; all texts are escaped."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from rlcm.report.encoding import data_uri, data_uris
from rlcm.report.metric import Metric
from rlcm.report.page import render_page
from rlcm.report.run import Run
from rlcm.report.samples import Samples, Shot
from rlcm.report.templating import render
from rlcm.report.words import decimals, duration, signed_change, with_unit, written
from rlcm.studies.compare import compare, read_methods
from rlcm.studies.compare.methods import Method, measured_alike
from rlcm.studies.compare.page import charts, final_table, speedup_tables, strips
from rlcm.studies.compare.page import headline as comparison_headline
from rlcm.studies.intervals import mean_over_seeds
from rlcm.ui.folder import RunsFolder
from rlcm.ui.playground import Drawn
from rlcm.ui.server import run_address
from rlcm.ui.states import Card

BUDGET = 3_000_000
"""Bytes of the pictures in one part of the page."""
PIXELATED = 128
"""Pictures up to this side are sent as they are."""
drawing = threading.Lock()
"""matplotlib's settings are one for all threads."""


def style() -> str:
    """Return the page's style sheet: the report's, held inside the page's own parts, and what is the page's alone."""
    return render_page("ui/templates/ui.css.jinja", {})


def runs_list(cards: Sequence[Card], chosen: str | None, left_out: Mapping[str, str]) -> str:
    """Return the list of runs, and why others are left out of it, by name."""
    rows = [(card, run_address(card.name)) for card in cards]
    return render("ui/templates/runs.html.jinja", cards=rows, chosen=chosen, left_out=left_out)


def nothing(title: str, text: str) -> str:
    """Return what stands where there is nothing to show."""
    return render("ui/templates/samples.html.jinja", title=title, text=text)


def notices(*described: tuple[str, str, str]) -> str:
    """Return boxes of kind (note, warning, error, done), title and text."""
    rows = [{"kind": kind, "title": title, "text": text} for kind, title, text in described]
    return render("ui/templates/train.html.jinja", notices=rows)


def refusal(title: str, text: str, wrong: Sequence[str]) -> str:
    """Return a box that says what is wrong with a form, and which fields are to be marked, by the keys of their settings."""
    ids = " ".join(field_id(key) for key in wrong)
    return render("ui/templates/train.html.jinja", notices=[{"kind": "error", "title": title, "text": text}], wrong=ids)


def field_id(key: str) -> str:
    """Return the id of the field of a setting."""
    return f"set-{key.replace('.', '-')}"


def training_log(name: str, words: str, log: str, *described: tuple[str, str, str]) -> str:
    """Return what a training wrote last, under boxes as `notices`."""
    rows = [{"kind": kind, "title": title, "text": text} for kind, title, text in described]
    return render("ui/templates/train.html.jinja", notices=rows, name=name, words=words, log=log)


def sample_sheet(run: Run, samples: Samples) -> str:
    """Return all kept pictures of a round."""
    shots = run.shots(samples, range(len(samples.prompts)))
    shown = shown_shots(shots, run.metric)
    rows = [one | {"prompt": samples.prompts[i], "seed": samples.seeds[i]} for i, one in enumerate(shown)]
    last = run.samples[-1].round
    return render("ui/templates/samples.html.jinja", shots=rows, round=samples.round, last=last, worth=worth(run.metric))


def sample_film(run: Run, cell: int, round_number: int) -> str:
    """Return one prompt and seed through the training: before, at a round, and every round that was kept.

    Args:
        cell: of the last round's grid.
    """
    last = run.samples[-1]
    key = (last.prompts[cell], str(last.seeds[cell]))
    places = [(s, s.keys) for s in run.samples]
    shots = [run.shots(samples, [keys.index(key)])[0] for samples, keys in places if key in keys]
    shown = shown_shots(shots, run.metric)
    now = min(shown, key=lambda one: abs(one["round"] - round_number))
    return render(
        "ui/templates/samples.html.jinja",
        film=shown,
        before=shown[0],
        now=now,
        prompt=key[0],
        seed=key[1],
        worth=worth(run.metric),
    )


def pair(drawn: Sequence[Drawn], metric: Metric, took: float) -> str:
    """Return the base model's picture and the tuned one's, with what they are worth."""
    base, about = drawn[0], drawn[-1].about
    names = ["base model"] if len(drawn) == 1 else ["base model", f"tuned, strength {about['strength']:g}"]
    sides = [
        {
            "title": name,
            "about": about["model"] if place == 0 else about["run"],
            "uri": one.uri(),
            "worths": _values(one, None if place == 0 else base, metric),
            "verdicts": one.verdicts,
            "file": file_name(one),
        }
        for place, (name, one) in enumerate(zip(names, drawn, strict=True))
    ]
    return render(
        "ui/templates/pair.html.jinja",
        sides=sides,
        prompt=about["prompt"],
        seed=about["seed"],
        steps=about["steps"],
        took=duration(took),
        failure=drawn[0].failure,
        warning=drawn[0].warning,
    )


def no_pair(title: str, text: str) -> str:
    """Return what stands in place of the pictures."""
    return render("ui/templates/pair.html.jinja", title=title, text=text)


def file_name(drawn: Drawn) -> str:
    """Return the name under which a picture is kept."""
    about = drawn.about
    words = re.sub(r"[^a-z0-9]+", "-", str(about["prompt"]).lower()).strip("-")[:40] or "picture"
    model = f"{about['run']}-x{about['strength']:g}" if about["strength"] else "base"
    return f"{words}-seed{about['seed']}-steps{about['steps']}-{model}.png"


def comparison(runs: RunsFolder, names: Sequence[str]) -> str:
    """Return runs side by side.

    Raises:
        RLCMError: and its children, if they cannot be compared.
    """
    methods, metric, warnings = read_methods([runs.run_path(name) for name in names])
    found = compare(methods)
    keys = list(methods[0].settings)
    with drawing:
        return render(
            "ui/templates/compare.html.jinja",
            ahead=ahead(methods, metric) if measured_alike(warnings) else ("", "", ""),
            headline=comparison_headline(found, metric, warnings),
            warnings=warnings,
            curves=charts(methods, metric),
            finals=final_table(found, metric),
            speedups=speedup_tables(found, metric) if len(methods) > 1 else [],
            strips=strips(methods, metric),
            settings={
                "heads": ["setting", *[method.name for method in methods]],
                "rows": [[key, *(_text(method.settings[key]) for method in methods)] for key in keys],
            },
        )


def ahead(methods: Sequence[Method], metric: Metric) -> tuple[str, str, str]:
    """Return the sentence that says which method ended ahead, in three parts; the middle one is emphasised.

    A method of one run has the interval of its pictures, one of several that of its seeds.
    """
    ends = sorted(((*_end(method), method.name) for method in methods if method.curves), reverse=True)
    if len(ends) < 2:
        return "", "", ""
    (best, wide, name), (second, narrow, other) = ends[:2]
    sign = -1.0 if metric.lower_is_better else 1.0
    gap, half = best - second, math.hypot(wide, narrow)
    digits = decimals(best, second)
    numbers = f"{metric.label} {written(sign * best, digits)} against {with_unit(sign * second, metric.unit, digits)}"
    apart = f"{written(gap, digits)} ± {with_unit(half, metric.unit, digits)}"
    if gap > half:
        return f"{name} ", "is ahead", f" of {other}: {numbers}, by {apart}."
    return "", "Nobody is clearly ahead", f": {name} and {other} end with {numbers}; they differ by {apart}."


def _end(method: Method) -> tuple[float, float]:
    """Return the mean reward at the end, higher is better, and the half-width of its 95 % interval."""
    mean, half = mean_over_seeds([curve.reward[curve.outcome] for curve in method.curves])
    first = method.curves[0]
    return mean, (first.half[first.outcome] if half is None else half)


def no_comparison(title: str, text: str) -> str:
    """Return what stands in place of a comparison."""
    return render("ui/templates/compare.html.jinja", title=title, text=text)


def _values(drawn: Drawn, base: Drawn | None, metric: Metric) -> list[dict[str, str]]:
    """Return a picture's rewards as people read them; the one that is the run's metric under its name and unit."""
    rows = []
    for label, value in drawn.rewards.items():
        how = metric if metric.reward == label else Metric(label.replace("_", " "))
        shown, old = how.shown(value), how.shown(None if base is None else base.rewards.get(label))
        if shown is None:
            continue
        digits = decimals(shown) if old is None else decimals(shown, old)
        same = old is None or written(old, digits) == written(shown, digits)
        change = "" if old is None or same else signed_change(old, shown)
        rows.append({"label": how.label, "text": with_unit(shown, how.unit, digits), "change": change})
    return rows


def shown_shots(shots: Sequence[Shot], metric: Metric) -> list[dict[str, Any]]:
    """Return pictures as data URIs, with their value in words, what the judge said, and their round."""
    digits = decimals(*(shot.value for shot in shots if shot.value is not None))
    pictures = [shot.picture for shot in shots]
    small = all(max(picture.size) <= PIXELATED for picture in pictures)
    uris = [png(picture) for picture in pictures] if small else data_uris(pictures, BUDGET)
    return [
        {
            "uri": uri,
            "value": with_unit(shot.value, metric.unit, digits),
            "verdicts": shot.verdicts,
            "round": shot.round,
        }
        for shot, uri in zip(shots, uris, strict=True)
    ]


def png(picture: Image.Image) -> str:
    """Return a small picture as a data URI, without the search for the smallest file that takes most of the time."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return data_uri("png", buffer.getvalue())


def worth(metric: Metric) -> str:
    """Return in a sentence what stands below pictures."""
    return f"Below each its {metric.noun}{' (lower is better)' if metric.lower_is_better else ''}."


def _text(value: Any) -> str:
    return "" if value is None else str(value)
