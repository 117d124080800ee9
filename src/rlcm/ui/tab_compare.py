"""Runs side by side."""

from __future__ import annotations

from typing import Any

import gradio as gr

from rlcm.ui import fragments
from rlcm.ui.desk import Desk, in_words

FIRST = 4
"""Runs that are compared before any are chosen."""


def compare_tab(desk: Desk, tab: gr.Tab) -> None:
    """Lay out the tab."""
    runs = gr.Dropdown(
        label="Runs",
        info="The first is what the others are compared with",
        choices=[],
        multiselect=True,
        elem_id="compare-runs",
    )
    view = gr.HTML(elem_id="compare-view")

    @in_words
    def show(names: list[str]) -> str:
        if len(names) < 2:
            text = "Choose two runs or more above: their curves, what they ended with, and the same prompts and seeds."
            return fragments.no_comparison("Nothing to compare yet", text)
        return fragments.comparison(desk.runs, names)

    def enter(present: list[str]) -> list[Any]:
        names = [name for name, run in desk.runs.look()[0].items() if run.evaluations]
        wanted = [name for name in present if name in names] or sorted(names)[:FIRST]
        return [gr.update(choices=sorted(names), value=wanted), show(wanted)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.select(enter, runs, [runs, view], **quiet)
    runs.input(show, runs, view, show_progress="minimal", api_visibility="private")
