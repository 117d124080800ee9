"""The parts of one run on the page as HTML: what it did, its pictures through the rounds, its tiles, its curve, its details."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rlcm.report.drawing import curves, guards
from rlcm.report.picture import telling
from rlcm.report.run import WEIGHTS, Run
from rlcm.report.samples import Samples
from rlcm.report.templating import render
from rlcm.report.words import headline, summary
from rlcm.ui.advice import advice_on
from rlcm.ui.fragments import drawing, shown_shots, worth
from rlcm.ui.jobs import Job
from rlcm.ui.server import file_address, run_address
from rlcm.ui.states import LIVE, STOPPING, WORDS, planned_rounds, progress_of, result, standing, state_of
from rlcm.ui.tiles import tiles

ACTS = 6
"""Prompts that are shown before and after."""
FRAMES = 12
"""Rounds that the slider meets, at most."""
TEMPLATE = "ui/templates/run.html.jinja"


def run_head(name: str, run: Run, job: Job, failure: str = "") -> str:
    """Return what a run did or does, and with what it failed."""
    state = state_of(run, job, failure)
    live = state in LIVE
    return render(
        TEMPLATE,
        part="head",
        name=name,
        href=run_address(name),
        words=WORDS[state],
        live=live and planned_rounds(run),
        progress=progress_of(run),
        headline=("", standing(run), "") if live else headline(run),
        result=result(run) if live else "",
        stopping=STOPPING if state == "stopping" else "",
        failure=failure,
    )


def run_actions(name: str, run: Run, job: Job, failure: str = "") -> str:
    """Return what can be done with a run, as buttons."""
    state = state_of(run, job, failure)
    tuned, report = (os.path.isfile(run.path / inside) for inside in (WEIGHTS, "report.html"))
    todo = [("try", "Try it")] if tuned else []
    todo += {
        "training": [("stop", "Stop after this round")],
        "stopped": [("resume", "Resume the training")],
        "failed": [("retry", "Retry"), ("dismiss", "Dismiss")],
    }.get(state, [])
    links = [{"href": file_address(name, WEIGHTS), "text": "Export", "keep": True}] if tuned else []
    links += [{"href": file_address(name, "report.html"), "text": "Report", "keep": False}] if report else []
    return render(TEMPLATE, part="actions", todo=todo, links=links)


def starting(name: str) -> tuple[str, str]:
    """Return what is known of a training that has written nothing yet, and what can be done with it."""
    head = render(TEMPLATE, part="starting", name=name, href=run_address(name), words=WORDS["starting"])
    return head, render(TEMPLATE, part="actions", todo=[("stop", "Stop after this round")], links=[])


def unbegun(name: str) -> tuple[str, str]:
    """Return what is known of a training that was stopped before there was a run, and what can be done with it."""
    head = render(TEMPLATE, part="unbegun", name=name, href=run_address(name), words=WORDS["stopped"])
    return head, render(TEMPLATE, part="actions", todo=[("retry", "Start it again"), ("dismiss", "Dismiss")], links=[])


def failed(name: str, failure: str, place: str) -> tuple[str, str]:
    """Return what is known of a training that ended before there was a run, and what can be done with it.

    Args:
        failure: with what it ended.
        place: the folder with its log and the configuration that was asked for.
    """
    todo = (
        "Mend what it says and Retry; with other settings, start it again under Train. What was asked for is in "
        f"{name}.config.yaml, and all that it wrote in {name}.log, both in {place}."
    )
    head = render(TEMPLATE, part="failed", name=name, href=run_address(name), words=WORDS["failed"], failure=failure, todo=todo)
    return head, render(TEMPLATE, part="actions", todo=[("retry", "Retry"), ("dismiss", "Dismiss")], links=[])


def welcome() -> tuple[str, str]:
    """Return what stands where there is no run yet, and two ways to the first one."""
    todo = [("demo", "Start the demo"), ("mine", "My own reward")]
    return render(TEMPLATE, part="welcome"), render(TEMPLATE, part="actions", todo=todo, links=[])


def run_stage(run: Run) -> str:
    """Return pictures of the same prompts and seeds, before training and at the rounds that were kept, large."""
    if not run.samples:
        return ""
    first, rest = run.samples[0], _thinned(run.samples[1:], run.final_round)
    keys, others = first.keys, [one.keys for one in rest]
    cells = [i for i, key in enumerate(keys) if all(key in other for other in others)]
    if not cells:
        return ""
    rounds = [one.round for one in rest]
    start = rounds.index(run.final_round) if run.final_round in rounds else len(rounds) - 1
    last, question = (rest[start], others[start]) if rest else (first, keys), run.metric.question or ""
    answers = [
        (dict(first.verdicts(i)).get(question), dict(last[0].verdicts(last[1].index(keys[i]))).get(question)) for i in cells
    ]
    places, rule = telling(answers, ACTS)
    cells = [cells[place] for place in places]
    shots = list(run.shots(first, cells))
    for one, other in zip(rest, others, strict=True):
        shots += run.shots(one, [other.index(keys[i]) for i in cells])
    shown = shown_shots(shots, run.metric)
    acts = [
        {"prompt": first.prompts[cell], "before": shown[place], "frames": shown[place + len(cells) :: len(cells)]}
        for place, cell in enumerate(cells)
    ]
    said = rule or "The first of the fixed set."
    return render(
        TEMPLATE, part="stage", of=run.path.name, acts=acts, rounds=rounds, start=start, worth=worth(run.metric), rule=said
    )


def run_tiles(run: Run) -> str:
    """Return the run's numbers with a verdict each, and what to know of it."""
    advice = advice_on(run)
    return render(TEMPLATE, part="tiles", tiles=tiles(run, advice), advice=advice)


def run_curve(run: Run) -> str:
    """Return the learning curve, over time and over images, one of which is shown."""
    with drawing:
        return render(TEMPLATE, part="curve", curves=curves(run))


def run_details(name: str, run: Run) -> str:
    """Return with what it was run, its files, and the curves of what should not change while the reward does."""
    links = [
        {"href": file_address(name, inside), "text": text, "keep": keep}
        for inside, text, keep in (
            ("config.yaml", "Its configuration", False),
            ("metrics.jsonl", "Its rounds", False),
            ("eval.json", "Its evaluations", False),
            (WEIGHTS, "The tuned LoRA", True),
        )
        if os.path.isfile(run.path / inside)
    ]
    with drawing:
        return render(TEMPLATE, part="details", facts=summary(run), links=links, guards=guards(run), path=str(run.path))


def log_end(log: str) -> str:
    """Return the end of what a training wrote; nothing where it wrote nothing."""
    return render(TEMPLATE, part="log", log=log)


def _thinned(samples: list[Samples], kept: int | None) -> list[Samples]:
    """Return at most `FRAMES` rounds, evenly spread, the last and the kept one among them."""
    if len(samples) <= FRAMES:
        return samples
    places: set[Any] = {round(place) for place in np.linspace(0, len(samples) - 1, FRAMES).tolist()}
    return [one for place, one in enumerate(samples) if place in places or one.round == kept]
