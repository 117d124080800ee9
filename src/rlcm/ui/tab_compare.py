"""Runs side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import gradio as gr

from rlcm.report.run import Run
from rlcm.report.values import mapping
from rlcm.ui import fragments
from rlcm.ui.desk import Desk, in_words

FIRST = 4
"""Runs that are compared before any are chosen."""


def alike(runs: Mapping[str, Run]) -> list[str]:
    """Return the names of the runs that measured the reward of most of them, so that there is something to compare."""
    rewards = {name: set(mapping(run.evaluations[0].get("rewards"))) for name, run in runs.items()}
    counts = Counter(label for labels in rewards.values() for label in labels)
    common = max(counts, key=lambda label: counts[label], default=None)
    return [name for name, labels in rewards.items() if common in labels] if counts else list(runs)


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
        runs = {name: run for name, run in desk.runs.look()[0].items() if len(run.evaluations) > 1}
        wanted = [name for name in present if name in runs] or sorted(alike(runs)[:FIRST])
        return [gr.update(choices=sorted(runs), value=wanted), show(wanted)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.select(enter, runs, [runs, view], **quiet)
    runs.input(show, runs, view, show_progress="minimal", api_visibility="private")
