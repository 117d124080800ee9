"""The pictures of the fixed prompts and seeds, through the rounds."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

from rlcm.errors import RLCMError
from rlcm.report.run import Run
from rlcm.report.samples import Samples
from rlcm.ui import fragments
from rlcm.ui.desk import PICK, Desk, in_words, run_menu

ALL = "all of them"


def samples_tab(desk: Desk, chosen: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab."""
    with gr.Row(equal_height=True):
        run = gr.Dropdown(label="Run", choices=[], scale=1, min_width=200, elem_id="samples-run")
        cell = gr.Dropdown(label="Picture", choices=[(ALL, -1)], value=-1, scale=1, min_width=200, elem_id="samples-cell")
        moment = gr.Slider(
            label="Round", minimum=0, maximum=1, step=1, value=0, scale=2, min_width=260, elem_id="samples-round"
        )
    view = gr.HTML(js_on_load=PICK, elem_id="samples-view")

    def choose(name: str | None, cell: int) -> list[Any]:
        """Return the menus for a run, at its last round, and the view."""
        found = _read(desk, name)
        if found is None or not found.samples:
            text = "They appear with the first look at the fixed prompts, before the first round."
            view = fragments.nothing("No pictures yet", text if name else "There is no run in this folder.")
            return [gr.update(choices=[(ALL, -1)], value=-1), gr.update(interactive=False), view]
        last = found.samples[-1]
        pictures = [(ALL, -1), *((f"{i + 1}. {prompt}", i) for i, prompt in enumerate(last.prompts))]
        cell = cell if cell < len(last.prompts) else -1
        first, step = found.samples[0].round, _step(found.samples)
        slider = gr.update(
            minimum=first, maximum=max(last.round, first + 1), step=step, value=last.round, interactive=len(found.samples) > 1
        )
        return [gr.update(choices=pictures, value=cell), slider, show(name, last.round, cell)]

    @in_words
    def show(name: str | None, moment: float, cell: int) -> str:
        found = desk.runs.read(name or "")
        if not found.samples:
            return fragments.nothing("No pictures yet", "They appear with the first look at the fixed prompts.")
        if cell >= 0 and cell < len(found.samples[-1].prompts):
            return fragments.sample_film(found, cell, round(moment))
        return fragments.sample_sheet(found, at(found.samples, moment))

    def enter(chosen: str | None, cell: int) -> list[Any]:
        names = desk.runs.names()
        name = chosen if chosen in names else next(iter(names), None)
        return [run_menu(names, name), *choose(name, cell)]

    def pick(name: str, moment: float, event: gr.EventData) -> list[Any]:
        cell = int(event.cell)
        return [cell, show(name, moment, cell)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.select(enter, [chosen, cell], [run, cell, moment, view], **quiet)
    run.input(lambda name: name, run, chosen, **quiet)
    run.input(choose, [run, cell], [cell, moment, view], **quiet)
    moment.input(show, [run, moment, cell], view, trigger_mode="always_last", **quiet)
    cell.input(show, [run, moment, cell], view, **quiet)
    view.select(pick, [run, moment], [cell, view], **quiet)


def at(samples: list[Samples], moment: float) -> Samples:
    """Return the pictures that were the newest ones at a round."""
    return next((one for one in reversed(samples) if one.round <= moment), samples[0])


def _step(samples: list[Samples]) -> int:
    """Return the step of a slider that meets every round with pictures."""
    return max(1, math.gcd(*(one.round - samples[0].round for one in samples)))


def _read(desk: Desk, name: str | None) -> Run | None:
    try:
        return desk.runs.read(name or "")
    except RLCMError:
        return None
