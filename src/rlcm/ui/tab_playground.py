"""Drawing with the base model and with what a run has learnt, side by side."""

from __future__ import annotations

import os
import random
import time
from html import escape
from typing import Any

import gradio as gr

from rlcm.pipelines.settings import STRONGEST
from rlcm.policy.noise import SEEDS
from rlcm.report.templating import render
from rlcm.training.final import WEIGHTS_NAME
from rlcm.ui import fragments
from rlcm.ui.desk import PICK, Desk, in_brief
from rlcm.ui.playground import standing

BASE = "the built-in model, untuned"
IDEAS = ("a fox", "three frogs", "a yellow car", "a star left of an owl", "a red heart and a blue boat")


def playground_tab(desk: Desk, chosen: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            run = gr.Dropdown(label="Model", choices=[BASE], value=BASE, elem_id="play-run")
            prompt = gr.Textbox(label="Prompt", value=IDEAS[0], max_lines=3, elem_id="play-prompt")
            ideas = gr.HTML(render("ui/templates/chips.html.jinja", prompts=IDEAS), js_on_load=PICK, elem_id="play-ideas")
            with gr.Row(equal_height=True):
                seed = gr.Number(label="Seed", value=0, minimum=0, maximum=SEEDS - 1, min_width=110, elem_id="play-seed")
                dice = gr.Button("Another seed", min_width=120, elem_id="play-dice")
            steps = gr.Slider(label="Steps", minimum=1, maximum=8, step=1, value=4, elem_id="play-steps")
            strength = gr.Slider(
                label="Adapter strength",
                info="0 is the base model, 1 what was trained, above 1 more of it",
                minimum=0, maximum=STRONGEST, step=0.05, value=1.0, elem_id="play-strength",
            )  # fmt: skip
            where = gr.HTML("", elem_id="play-standing")
            draw = gr.Button("Draw", variant="primary", elem_id="play-draw")
        with gr.Column(scale=5, min_width=310):
            view = gr.HTML(
                fragments.no_pair("Nothing drawn yet", "Choose a model and a prompt, then Draw."), elem_id="play-view"
            )

    def enter(chosen: str | None, present: str) -> Any:
        """Return the menu of models that can be drawn with; the run that was looked at last is chosen."""
        names = _tuned(desk)
        name = chosen if chosen in names else present if present in names else next(iter(names), BASE)
        return gr.update(choices=[*names, BASE], value=name)

    def prepare(name: str) -> list[Any]:
        """Load a model, so that the first picture need not wait for it; its own number of steps is chosen."""
        try:
            own = desk.studios.prepare(_folder(desk, name))
        except Exception as error:  # a run's files are anybody's
            return [gr.update(), fragments.no_pair("This model cannot be loaded", in_brief(error))]
        return [gr.update(value=own, maximum=max(8, own)), gr.update()]

    def picture(name: str, prompt: str, seed: float | None, steps: float, strength: float) -> str:
        if not prompt.strip():
            return fragments.no_pair("No prompt", "Write what the picture should show.")
        try:
            folder = _folder(desk, name)
            started = time.perf_counter()
            drawn, metric = desk.studios.draw(folder, prompt.strip(), seed or 0, steps, strength)
        except Exception as error:
            return fragments.no_pair("This could not be drawn", in_brief(error))
        return fragments.pair(drawn, metric, time.perf_counter() - started)

    def stand(name: str, strength: float) -> str:
        """Return what was measured near a strength, where it was."""
        try:
            folder = _folder(desk, name)
            text = "" if folder is None else standing(folder, strength)
        except Exception:  # a run's files are anybody's, and this line is an extra
            text = ""
        return f'<div class="rl"><p class="quiet">{escape(text)}</p></div>' if text else ""

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    entered = [run, prompt, seed, steps, strength]
    tab.select(enter, [chosen, run], run, **quiet).then(prepare, run, [steps, view], **quiet)
    run.input(prepare, run, [steps, view], show_progress="minimal", api_visibility="private")
    ideas.select(_idea, None, prompt, **quiet).then(picture, entered, view, **quiet)
    dice.click(lambda: random.randrange(SEEDS), None, seed, **quiet).then(picture, entered, view, **quiet)
    gr.on([run.change, strength.release], stand, [run, strength], where, **quiet)
    gr.on(
        [draw.click, prompt.submit, seed.submit, steps.release, strength.release],
        picture, entered, view, trigger_mode="always_last", show_progress="minimal", api_visibility="private",
    )  # fmt: skip


def _idea(event: gr.EventData) -> str:
    return str(event.prompt)


def _tuned(desk: Desk) -> list[str]:
    """Return the runs that have learnt weights to draw with."""
    return [name for name in desk.runs.names() if os.path.isfile(desk.runs.path / name / "final" / WEIGHTS_NAME)]


def _folder(desk: Desk, name: str) -> Any:
    return None if name == BASE else desk.runs.run_path(name)
