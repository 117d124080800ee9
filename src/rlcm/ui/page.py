"""The page as a whole."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI

from rlcm.report.templating import render
from rlcm.ui import fragments
from rlcm.ui.desk import Desk
from rlcm.ui.folder import RunsFolder
from rlcm.ui.jobs import Jobs
from rlcm.ui.server import App, Guard, add_files
from rlcm.ui.tab_compare import compare_tab
from rlcm.ui.tab_playground import playground_tab
from rlcm.ui.tab_runs import runs_tab
from rlcm.ui.tab_samples import samples_tab
from rlcm.ui.tab_teach import teach_tab
from rlcm.ui.tab_train import train_tab

EVERY = 2.0
"""Seconds between looks at what is new."""


def create_app(runs: RunsFolder, host: str, password: str | None) -> App:
    """Return the web application.

    Args:
        host: the address that it will listen at.
        password: that visitors must give; None lets everyone in.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_files(app, runs)
    gr.mount_gradio_app(
        app,
        build_page(Desk(runs, Jobs(runs.path))),
        path="/",
        theme=theme(),
        head=f"<style>{fragments.style()}</style>",
        footer_links=[],
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=0,
    )
    return Guard(app, host, password)


def build_page(desk: Desk) -> gr.Blocks:
    """Return the page's layout and what its parts do."""
    with gr.Blocks(title="rlcm", analytics_enabled=False) as page:
        chosen, shown, wanted = gr.State(None), gr.State("runs"), gr.State("")
        timer = gr.Timer(EVERY)
        gr.HTML(render("ui/templates/top.html.jinja", folder=str(desk.runs.path)))
        with gr.Tabs(overflow_behavior="wrap") as row:
            tabs: dict[str, gr.Tab] = {}
            with gr.Tab("Runs", id="runs") as tabs["runs"]:
                runs_tab(desk, chosen, page, timer, shown, row, wanted)
            with gr.Tab("Samples", id="samples") as tabs["samples"]:
                samples_tab(desk, chosen, tabs["samples"])
            with gr.Tab("Playground", id="playground") as tabs["playground"]:
                playground_tab(desk, chosen, tabs["playground"])
            with gr.Tab("Teach", id="teach") as tabs["teach"]:
                teach_tab(desk, timer, shown)
            with gr.Tab("Compare", id="compare") as tabs["compare"]:
                compare_tab(desk, tabs["compare"])
            with gr.Tab("Train", id="train") as tabs["train"]:
                train_tab(desk, chosen, tabs["train"], timer, shown, wanted)
        # Gradio's client may take an answer's place in a stream that is just being closed; the next request then brings it. Without one
        # that is sent whatever is waited for, a page that nobody touches would stand still for good.
        timer.tick(lambda: None, None, None, trigger_mode="multiple", show_progress="hidden", api_visibility="private")
        for name, tab in tabs.items():
            tab.select(lambda name=name: name, None, shown, show_progress="hidden", api_visibility="private")
    return page


def theme() -> gr.themes.Base:
    """Return the report's colours and the system's own fonts: nothing is fetched from anywhere.

    They are the same where the system is set to dark: pictures are judged on one and the same ground, and a page that is sent to
    somebody looks to them as it looked here.
    """
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    blue = gr.themes.Color(
        "#f2f6fc", "#e5eefb", "#c5d8f4", "#9dbdea", "#6193da", "#1f5fbf", "#1b54aa", "#174a95", "#143f80", "#10346a", "#0b264e"
    )
    made = gr.themes.Base(
        primary_hue=blue, secondary_hue=blue, neutral_hue="slate", radius_size="lg", font=fonts, font_mono=mono
    )
    made = made.set(
        body_background_fill="#f7f8f9", block_border_color="#e1e5e9", block_shadow="none", input_border_color="#d5dbe1",
        button_primary_background_fill="*primary_500", button_primary_background_fill_hover="*primary_600",
        button_primary_text_color="white", button_secondary_background_fill="white", button_secondary_border_color="#d5dbe1",
        button_secondary_background_fill_hover="#eef3fa",
        block_radius="12px", input_radius="9px", button_large_radius="10px", button_small_radius="9px", container_radius="12px",
        button_border_width="1px", button_primary_border_color="*primary_500", button_large_text_weight="600",
        slider_color="*primary_500", block_label_text_color="#3b434c", block_info_text_color="#5b646f",
        body_text_color_subdued="#5b646f", input_placeholder_color="#5b646f",
    )  # fmt: skip
    for name in [name for name in vars(made) if name.endswith("_dark")]:
        setattr(made, name, getattr(made, name.removesuffix("_dark")))
    return made
