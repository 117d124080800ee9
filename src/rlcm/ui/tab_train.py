"""Starting a training: a form made from the configuration, and what the process says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from rlcm.errors import RLCMError
from rlcm.pipelines.settings import BUILTIN
from rlcm.training.config import TrainConfig
from rlcm.ui import fragments
from rlcm.ui.desk import MARK, Desk, in_brief
from rlcm.ui.first_runs import OWN, file_of, own_reward
from rlcm.ui.form import (
    PLAIN,
    STARTS,
    Field,
    behind,
    choices_of,
    fields,
    in_form_words,
    in_front,
    plan,
    read_form,
    split_weights,
    start_from,
    values_of,
    weighted,
    wrong_fields,
)
from rlcm.ui.states import STOPPING, WORDS

TITLES = {
    "model": "Model",
    "sampler": "Sampling",
    "lora": "What is trained",
    "rollout": "What a round samples",
    "algorithm": "How rewards become learning",
    "optimizer": "Optimiser",
    "evaluation": "Looking at it",
    "run": "Length, memory, saving",
}
LINES = 60
"""Of the log that are shown."""
WEIGHTS = 4
"""Rewards that have a field for their weight; those of more are written into their entries."""
MEASURING = "A round is being tried …"


def train_tab(desk: Desk, chosen: gr.State, tab: gr.Tab, timer: gr.Timer, shown: gr.State, wanted: gr.State) -> None:
    """Lay out the tab.

    Args:
        wanted: what another tab asks the form to start from, and a number that is new each time.
    """
    started = gr.State(None)
    seen = gr.State(0)
    initial = values_of(start_from("*default", {}))
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=310):
            start = gr.Dropdown(label="Start from", choices=_starts([]), value="*default", elem_id="train-start")
            boxes: dict[str, Any] = {}
            front = in_front()
            with gr.Row():
                for field in front[:4]:
                    boxes[field.key] = component(field, initial[field.key], min_width=280)
            with gr.Row(elem_classes="front"):
                weights = [
                    gr.Number(value=1.0, visible=False, min_width=150, elem_id=f"weight-{place}") for place in range(WEIGHTS)
                ]
            with gr.Row(elem_classes="front"):
                for field in front[4:]:
                    boxes[field.key] = component(field, initial[field.key], min_width=150)
            drawers: dict[str, gr.Accordion] = {}
            for group, members in behind().items():
                with (
                    gr.Accordion(f"More: {TITLES.get(group, group)}", open=False) as drawers[group],
                    gr.Row(elem_classes="front"),
                ):
                    for field in members:
                        boxes[field.key] = component(field, initial[field.key], min_width=230)
        with gr.Column(scale=2, min_width=310):
            with gr.Row():
                check = gr.Button("Check", min_width=100, elem_id="train-check")
                go = gr.Button("Start training", variant="primary", min_width=160, elem_id="train-go")
            said = gr.HTML(js_on_load=MARK, elem_id="train-said")
            with gr.Row():
                end = gr.Button("Stop after this round", visible=False, size="sm", elem_id="train-stop")
            log = gr.HTML(elem_id="train-log")
    keys = [field.key for field in fields()]
    entered = [boxes[key] for key in keys]
    filled = [*entered, *weights]
    checked_last: dict[str | None, tuple[Any, ...]] = {}
    """By visits: what stood in the form at the last Check, to which alone an answer belongs."""

    def enter() -> Any:
        return gr.update(choices=_starts(desk.runs.names()))

    def fill(start: str) -> list[Any]:
        try:
            values = values_of(_config_of(desk, start))
        except RLCMError as error:
            return [fragments.notices(("error", "This configuration cannot be read", str(error))), *[gr.skip()] * len(filled)]
        note = ("note", f"The reward is in {file_of(desk.runs.path)}", "Change the file as you like, then Check.")
        values["rewards"], found = split_weights(values["rewards"])
        shown = [values[key] for key in keys]
        return [fragments.notices(note) if start == OWN else "", *shown, *_weight_boxes(values["rewards"], found)]

    def fill_wanted(wanted: str) -> list[Any]:
        start = wanted.partition(" ")[0]
        return [gr.update(choices=_starts(desk.runs.names()), value=start), *fill(start)]

    def weigh(rewards: list[str], *weights: float) -> list[Any]:
        """Show a weight for each of several rewards; one that is new begins at 1, or at what its text says."""
        texts, own = split_weights(rewards)
        kept = [new if new != 1 else old for new, old in zip(own, weights, strict=False)]
        return [gr.skip() if texts == rewards else texts, *_weight_boxes(texts, [*kept, *own[len(kept) :]])]

    def config_in(values: Sequence[Any]) -> TrainConfig:
        form, weights = dict(zip(keys, values[: len(keys)], strict=True)), values[len(keys) :]
        return read_form(form | {"rewards": weighted(form["rewards"] or [], weights)})

    def refused(title: str, error: RLCMError) -> list[Any]:
        """Say what is wrong, mark the fields, and open the drawers in which they are."""
        wrong = wrong_fields(str(error))
        groups = {key.rpartition(".")[0] for key in wrong if key not in PLAIN}
        drawn = [gr.update(open=True) if group in groups else gr.skip() for group in drawers]
        return [fragments.refusal(title, in_form_words(str(error)), wrong), *drawn]

    def look(request: gr.Request, *values: Any) -> list[Any]:
        checked_last[request.session_hash] = values
        try:
            config = config_in(values)
            desk.jobs.check(config)
        except RLCMError as error:
            return refused("Not yet", error)
        note = [("note", "How long it takes, and how much memory", MEASURING)] if config.model.path in BUILTIN else []
        return [fragments.notices(("done", "This can start", plan(config)), *note), *[gr.skip()] * len(drawers)]

    def measure(request: gr.Request, said: str, *values: Any) -> Any:
        """Add what the training would cost to a check that went well, where its model need not be fetched."""

        def is_last() -> bool:  # no other form was checked, or started, meanwhile
            return checked_last.get(request.session_hash) == values

        if MEASURING not in (said or "") or not is_last():
            return gr.skip()
        try:
            config = config_in(values)
            cost = desk.jobs.trial(config)
        except (RLCMError, OSError) as error:
            found = fragments.notices(("error", "Its first round failed", in_brief(error)))
        else:
            words = cost.words() if cost else "Its first round could not be tried here; the start says why."
            found = fragments.notices(("done", "This can start", plan(config)), ("note", "How long, how much memory", words))
        return found if is_last() else gr.skip()

    def begin(request: gr.Request, *values: Any) -> list[Any]:
        checked_last.pop(request.session_hash, None)
        try:
            config = config_in(values)
            others = desk.jobs.alive()
            name = desk.jobs.start(config)
        except RLCMError as error:
            return [*refused("It was not started", error), *[gr.skip()] * 3]
        said = [("done", f"{name} is starting", plan(config))]
        if others:
            said.append(
                ("warning", f"{', '.join(others)} is being trained, too", "They share this machine, so each is slower.")
            )
        return [fragments.notices(*said), *[gr.skip()] * len(drawers), name, name, gr.update(visible=True)]

    def follow(name: str | None, seen: int, shown: str) -> list[Any]:
        name = name or next(iter(desk.jobs.alive()), None)
        if shown != "train" or name is None:
            return [gr.skip()] * 4
        job, error = desk.jobs.state(name), desk.jobs.failure(name)
        text = "\n".join(desk.jobs.log(name).splitlines()[-LINES:])
        words = WORDS["stopping"] if job.stopping else WORDS["training"] if job.alive else "ended"
        boxes = []
        if error:
            boxes = [("error", "The training ended with an error", error)]
        html = fragments.training_log(name, words, text, *boxes)
        sent = gr.skip() if hash(html) == seen else html
        return [sent, gr.update(visible=job.alive and not job.stopping), name, hash(html)]

    def stop(name: str) -> str:
        try:
            desk.jobs.stop(name)
        except RLCMError as error:
            return fragments.notices(("error", "It was not stopped", str(error)))
        return fragments.notices(("done", "It will stop", STOPPING))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.select(enter, None, start, **quiet)
    told = [said, *drawers.values()]
    start.input(fill, start, [said, *filled], **quiet)
    wanted.change(fill_wanted, wanted, [start, said, *filled], **quiet)
    boxes["rewards"].change(weigh, [boxes["rewards"], *weights], [boxes["rewards"], *weights], **quiet)
    checked = check.click(look, filled, told, show_progress="minimal", api_visibility="private")
    checked.then(measure, [said, *filled], said, **quiet)
    go.click(begin, filled, [*told, started, chosen, end], **quiet)
    timer.tick(follow, [started, seen, shown], [log, end, started, seen], **quiet)
    end.click(stop, started, said, **quiet)


def _weight_boxes(rewards: Sequence[str], weights: Sequence[float]) -> list[Any]:
    """Return the updates of the fields of weights: one for each reward, where there are several."""
    return [
        gr.update(visible=len(rewards) > 1, value=weights[place], label=f"Weight of {rewards[place]}")
        if place < len(rewards)
        else gr.update(visible=False, value=1.0)
        for place in range(WEIGHTS)
    ]


def component(field: Field, value: Any, min_width: int) -> Any:
    """Return the input for a setting."""
    # The ranges stand behind the meanings and are checked with everything else, in the product's own words.
    meaning = field.meaning if field.key in PLAIN else f"{field.meaning} {field.range}".strip()
    shared: dict[str, Any] = {
        "label": field.label, "info": meaning, "min_width": min_width, "elem_id": fragments.field_id(field.key),
    }  # fmt: skip
    if field.kind == "switch":
        return gr.Checkbox(value=value, **shared)
    if field.kind == "choice":
        return gr.Dropdown(choices=list(field.choices), value=value, **shared)
    if field.kind in ("names", "rewards"):
        return gr.Dropdown(
            choices=list(choices_of(field)), value=value, allow_custom_value=True, multiselect=field.kind == "rewards", **shared
        )
    if field.is_written:
        return gr.Textbox(value=value, placeholder="left out", max_lines=1, **shared)
    if field.kind in ("whole", "number"):
        return gr.Number(value=value, **shared)  # nothing is rounded: what is no whole number is refused with everything else
    return gr.Textbox(value=value, max_lines=3, **shared)


def _config_of(desk: Desk, start: str) -> TrainConfig:
    if start == OWN:
        return own_reward(desk.runs.path)
    return start_from(start, {} if start in STARTS else {start: desk.runs.run_path(start)})


def _starts(names: list[str]) -> list[tuple[str, str]]:
    own = ("My own reward: a file to change", OWN)
    return [*((about, name) for name, about in STARTS.items()), own, *((f"The run {name}", name) for name in names)]
