"""The runs: which there are, how they learn at this moment, what to know of them; stopping and resuming."""

from __future__ import annotations

from typing import Any

import gradio as gr

from rlcm.errors import RLCMError
from rlcm.ui import fragments
from rlcm.ui.desk import PICK, Desk, changed
from rlcm.ui.states import card, state_of, waiting_card


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
            said = gr.HTML(elem_id="run-said")
            curves = gr.HTML(elem_id="run-curves")
            pairs = gr.HTML(elem_id="run-pairs")
            guards = gr.HTML(elem_id="run-guards")

    def look(name: str | None, seen: dict[str, int]) -> list[Any]:
        readable = dict(desk.runs.readable())
        names = list(readable)
        waiting = [name for name in desk.jobs.alive() if name not in readable]
        name = name if name in (*names, *waiting) else next(iter([*waiting, *names]), None)
        described = [waiting_card(one) for one in waiting]
        described += [card(one, run, desk.jobs.state(one)) for one, run in readable.items()]
        parts = {"cards": fragments.runs_list(described, name, desk.runs.left_out())}
        parts |= dict.fromkeys(("head", "curves", "pairs", "guards"), "")
        stoppable = resumable = False
        if name in readable:
            run, job = readable[name], desk.jobs.state(name)
            state = state_of(run, job)
            stoppable, resumable = state == "training", state == "stopped"
            failure = desk.jobs.error(name) if state == "stopped" else ""
            parts |= {"head": fragments.run_head(name, run, job, failure), "curves": fragments.run_curves(run)}
            parts |= {"pairs": fragments.run_pairs(run), "guards": fragments.run_guards(run)}
        elif name:
            parts["head"] = fragments.nothing(f"{name} is starting", "The model is being loaded; the first round follows.")
            stoppable = True
        sent, seen = changed(seen, parts)
        return [name, *sent, gr.update(visible=stoppable), gr.update(visible=resumable), seen]

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

    outputs = [chosen, cards, head, curves, pairs, guards, stop, resume, seen]
    # One after the other: a look that began before a choice must not end after it.
    quiet: dict[str, Any] = {
        "show_progress": "hidden", "api_visibility": "private", "concurrency_id": "runs", "concurrency_limit": 1,
    }  # fmt: skip
    page.load(look, [chosen, seen], outputs, **quiet)
    timer.tick(tick, [chosen, seen, shown], outputs, **quiet)
    cards.select(pick, [seen], [said, *outputs], **quiet)
    stop.click(end, [chosen, seen], [said, *outputs], **quiet)
    resume.click(go_on, [chosen, seen], [said, *outputs], **quiet)
