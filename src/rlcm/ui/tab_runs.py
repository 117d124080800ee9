"""The runs: which there are, how they learn at this moment, what to know of them; stopping and resuming."""

from __future__ import annotations

from typing import Any

import gradio as gr

from rlcm.errors import RLCMError
from rlcm.ui import fragments
from rlcm.ui.desk import PICK, Desk, changed, in_brief, in_words
from rlcm.ui.jobs import FOLDER
from rlcm.ui.states import card, failed_card, state_of, waiting_card

LINES = 60
"""Of the log of a training that failed."""


def runs_tab(desk: Desk, chosen: gr.State, page: gr.Blocks, timer: gr.Timer, shown: gr.State) -> None:
    """Lay out the tab.

    Args:
        chosen: the name of the run that is looked at.
        shown: the tab that is open.
    """
    seen = gr.State({})
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=290):
            cards = gr.HTML(js_on_load=PICK, elem_id="runs")
        with gr.Column(scale=3, min_width=310):
            head = gr.HTML(elem_id="run-head")
            with gr.Row(elem_classes="plain"):
                stop = gr.Button("Stop after this round", visible=False, size="sm", min_width=180, elem_id="stop")
                resume = gr.Button("Resume the training", visible=False, size="sm", min_width=180, elem_id="resume")
                forget = gr.Button("Take it off the list", visible=False, size="sm", min_width=180, elem_id="forget")
            said = gr.HTML(elem_id="run-said")
            pairs = gr.HTML(elem_id="run-pairs")
            curves = gr.HTML(elem_id="run-curves")
            guards = gr.HTML(elem_id="run-guards")

    def look(name: str | None, seen: dict[str, int]) -> list[Any]:
        runs, left_out = desk.runs.look()
        started = [one for one in desk.jobs.names() if one not in runs]
        failures = {one: why for one in (*started, *runs) if (why := desk.jobs.failure(one))}
        waiting = [one for one in started if desk.jobs.state(one).alive]
        failed = [one for one in started if one in failures]
        cards = [*map(waiting_card, waiting), *map(failed_card, failed)]
        for one, run in runs.items():
            try:
                cards.append(card(one, run, desk.jobs.state(one), failures.get(one, "")))
            except Exception as error:  # whatever its files hold: the others are shown
                left_out[one] = f"it cannot be shown ({in_brief(error)})"
        names = [one.name for one in cards]
        name = name if name in names else next((one for one in names if one not in failed), next(iter(names), None))
        parts = {"cards": fragments.runs_list(cards, name, left_out)}
        parts |= dict.fromkeys(("head", "curves", "pairs", "guards"), "")
        stoppable = resumable = forgettable = False
        if name in runs:
            run, job, failure = runs[name], desk.jobs.state(name), failures.get(name, "")
            state = state_of(run, job, failure)
            stoppable, resumable = state == "training", state in ("stopped", "failed")
            parts["head"] = in_words(fragments.run_head)(name, run, job, failure if state == "failed" else "")
            parts["curves"] = in_words(fragments.run_curves)(run)
            parts |= {"pairs": in_words(fragments.run_pairs)(run), "guards": in_words(fragments.run_guards)(run)}
        elif name in failed:
            log = "\n".join(desk.jobs.log(name).split("\n")[-LINES:])
            parts["head"] = fragments.failed_head(name, failures[name], log, str(desk.runs.path / FOLDER))
            forgettable = True
        elif name:
            parts["head"] = fragments.nothing(f"{name} is starting", "The model is being loaded; the first round follows.")
            stoppable = True
        sent, seen = changed(seen, parts)
        buttons = [gr.update(visible=shown) for shown in (stoppable, resumable, forgettable)]
        return [name, *sent, *buttons, seen]

    def tick(name: str | None, seen: dict[str, int], shown: str) -> list[Any]:
        return look(name, seen) if shown == "runs" else [gr.skip()] * len(outputs)

    def pick(seen: dict[str, int], event: gr.EventData) -> list[Any]:
        return ["", *look(event.run, seen)]

    def end(name: str, seen: dict[str, int]) -> list[Any]:
        said = ""
        try:
            desk.jobs.stop(name)
        except RLCMError as error:
            said = fragments.notices(("error", "It was not stopped", str(error)))
        return [said, *look(name, seen)]

    def go_on(name: str, seen: dict[str, int]) -> list[Any]:
        said = ""
        try:
            desk.runs.run_path(name)
            desk.jobs.resume(name)
        except RLCMError as error:
            said = fragments.notices(("error", "It was not resumed", str(error)))
        return [said, *look(name, seen)]

    def drop(name: str, seen: dict[str, int]) -> list[Any]:
        said = ""
        try:
            desk.jobs.forget(name)
        except RLCMError as error:
            said = fragments.notices(("error", "It is still listed", str(error)))
        return [said, *look(name, seen)]

    outputs = [chosen, cards, head, curves, pairs, guards, stop, resume, forget, seen]
    # One after the other: a look that began before a choice must not end after it.
    quiet: dict[str, Any] = {
        "show_progress": "hidden", "api_visibility": "private", "concurrency_id": "runs", "concurrency_limit": 1,
    }  # fmt: skip
    page.load(look, [chosen, seen], outputs, **quiet)
    timer.tick(tick, [chosen, seen, shown], outputs, **quiet)
    cards.select(pick, [seen], [said, *outputs], **quiet)
    stop.click(end, [chosen, seen], [said, *outputs], **quiet)
    resume.click(go_on, [chosen, seen], [said, *outputs], **quiet)
    forget.click(drop, [chosen, seen], [said, *outputs], **quiet)
