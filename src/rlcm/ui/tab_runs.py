"""The runs: which there are, how they learn at this moment, what to know of them; starting, stopping, resuming, retrying."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from rlcm.errors import RLCMError
from rlcm.report.run import Run
from rlcm.ui import first_runs, fragments, run_parts
from rlcm.ui.desk import PICK, STAGE, SWITCH, Desk, changed, in_brief, in_words
from rlcm.ui.first_runs import OWN
from rlcm.ui.jobs import FOLDER
from rlcm.ui.states import card, failed_card, state_of, stopped_card, waiting_card

LINES = 60
"""Of the log of a training that failed."""
PARTS = ("cards", "head", "actions", "stage", "tiles", "curve", "details", "log")


def runs_tab(
    desk: Desk, chosen: gr.State, page: gr.Blocks, timer: gr.Timer, shown: gr.State, tabs: gr.Tabs, wanted: gr.State
) -> None:
    """Lay out the tab.

    Args:
        chosen: the name of the run that is looked at.
        shown: the tab that is open.
        tabs: of the page.
        wanted: what the form of a new training is to be filled with.
    """
    seen, opened = gr.State({}), gr.State(False)
    with gr.Row(equal_height=False, elem_id="runs-page"):
        with gr.Column(scale=1, min_width=270):
            cards = gr.HTML(js_on_load=PICK, elem_id="runs")
        with gr.Column(scale=3, min_width=310):
            head = gr.HTML(elem_id="run-head")
            actions = gr.HTML(js_on_load=PICK, elem_id="run-actions")
            said = gr.HTML(elem_id="run-said")
            stage = gr.HTML(js_on_load=STAGE, elem_id="run-stage")
            with gr.Row(equal_height=False):
                with gr.Column(min_width=310):
                    tiles = gr.HTML(elem_id="run-tiles")
                with gr.Column(min_width=310):
                    curve = gr.HTML(js_on_load=SWITCH, elem_id="run-curve")
            with gr.Accordion("Details", open=False, elem_id="run-more") as more:
                details = gr.HTML(elem_id="run-details")
                log = gr.HTML(elem_id="run-log")

    def look(name: str | None, seen: dict[str, int], opened: bool) -> list[Any]:
        runs, left_out = desk.runs.look()
        started = [one for one in desk.jobs.names() if one not in runs]
        failures = {one: why for one in (*started, *runs) if (why := desk.jobs.failure(one))}
        waiting = [one for one in started if desk.jobs.state(one).alive]
        failed = [one for one in started if one in failures]
        stopped = [one for one in started if one not in waiting and desk.jobs.was_stopped(one)]
        cards = [*map(waiting_card, waiting), *(failed_card(one, failures[one]) for one in failed), *map(stopped_card, stopped)]
        for one, run in runs.items():
            try:
                cards.append(card(one, run, desk.jobs.state(one), failures.get(one, "")))
            except Exception as error:  # whatever its files hold: the others are shown
                left_out[one] = f"it cannot be shown ({in_brief(error)})"
        names = [one.name for one in cards]
        name = (
            name if name in names else next((one for one in names if one not in (*failed, *stopped)), next(iter(names), None))
        )
        parts = dict.fromkeys(PARTS, "") | {"cards": fragments.runs_list(cards, name, left_out)}
        if name is None:
            parts["head"], parts["actions"] = run_parts.welcome()
        elif name in runs:
            parts |= _of_run(desk, name, runs[name], failures.get(name, ""), opened)
        elif name in failed:
            parts["head"], parts["actions"] = run_parts.failed(name, failures[name], str(desk.runs.path / FOLDER))
            parts["log"] = _log(desk, name)
        elif name in stopped:
            parts["head"], parts["actions"] = run_parts.unbegun(name)
        else:
            parts["head"], parts["actions"] = run_parts.starting(name)
        sent, seen = changed(seen, parts)
        return [name, *sent, seen]

    def arrive(seen: dict[str, int], opened: bool, request: gr.Request) -> list[Any]:
        """Return the page as an address such as /?run=NAME asks for it."""
        asked = request.query_params.get("run")
        found = look(asked, seen, opened)
        missing = asked is not None and found[0] != asked
        said = ("note", f"There is no run {asked} here", "It was deleted, renamed, or is in another folder.")
        return [fragments.notices(said) if missing else "", *found]

    def tick(name: str | None, seen: dict[str, int], opened: bool, shown: str) -> list[Any]:
        return look(name, seen, opened) if shown == "runs" else [gr.skip()] * len(outputs)

    def act(name: str | None, seen: dict[str, int], opened: bool, event: gr.EventData) -> list[Any]:
        """Do what a button says: on a card, it is another run that is looked at."""
        said, tab, filled = "", gr.skip(), gr.skip()
        try:
            asked = getattr(event, "do", None)
            if asked in ("new", "try"):
                tab = gr.Tabs(selected="train" if asked == "new" else "playground")
            elif asked == "demo":
                name = desk.jobs.start(first_runs.demo())
            elif asked == "mine":
                filled, tab = f"{OWN} {time.time_ns()}", gr.Tabs(selected="train")
            elif asked == "stop":
                desk.jobs.stop(name or "")
            elif asked == "resume":
                desk.runs.run_path(name or "")
                desk.jobs.resume(name or "")
            elif asked == "retry":
                desk.jobs.retry(name or "")
            elif asked == "dismiss":
                desk.jobs.forget(name or "")
            else:
                name = event.run
        except RLCMError as error:
            said = fragments.notices(("error", "That was not done", str(error)))
        return [tab, filled, said, *look(name, seen, opened)]

    outputs = [chosen, cards, head, actions, stage, tiles, curve, details, log, seen]
    # One after the other: a look that began before a choice must not end after it.
    quiet: dict[str, Any] = {
        "show_progress": "hidden", "api_visibility": "private", "concurrency_id": "runs", "concurrency_limit": 1,
    }  # fmt: skip
    page.load(arrive, [seen, opened], [said, *outputs], **quiet)
    timer.tick(tick, [chosen, seen, opened, shown], outputs, **quiet)
    more.expand(lambda name, seen: [True, *look(name, seen, True)], [chosen, seen], [opened, *outputs], **quiet)
    more.collapse(lambda: False, None, opened, **quiet)
    for part in (cards, actions):
        part.select(act, [chosen, seen, opened], [tabs, wanted, said, *outputs], **quiet)


def _of_run(desk: Desk, name: str, run: Run, failure: str, opened: bool) -> dict[str, str]:
    """Return the parts of a run that can be read; its details take seconds to draw, and are left out where nobody looks."""
    job = desk.jobs.state(name)
    failure = failure if state_of(run, job, failure) == "failed" else ""
    found = {
        "head": in_words(run_parts.run_head)(name, run, job, failure),
        "actions": in_words(run_parts.run_actions)(name, run, job, failure),
        "stage": desk.drawn("stage", run, lambda: in_words(run_parts.run_stage)(run)),
        "tiles": desk.drawn("tiles", run, lambda: in_words(run_parts.run_tiles)(run)),
        "curve": desk.drawn("curve", run, lambda: in_words(run_parts.run_curve)(run)),
    }
    if opened:
        found["details"] = desk.drawn("details", run, lambda: in_words(run_parts.run_details)(name, run))
    return found | ({"log": _log(desk, name)} if failure else {})


def _log(desk: Desk, name: str) -> str:
    return run_parts.log_end("\n".join(desk.jobs.log(name).split("\n")[-LINES:]))
