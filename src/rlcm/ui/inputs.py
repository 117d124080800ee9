"""Inputs of the page that gradio's own answer with an error of its own."""

from __future__ import annotations

import gradio as gr


class Slider(gr.Slider):
    """A slider whose number may have been taken away: its value is then None."""

    is_template = True  # for the browser it is gradio's

    def preprocess(self, payload: float | None) -> float | None:
        """Return the value as it was entered; gradio compares it with its range, which nothing has no place in."""
        return None if payload is None else super().preprocess(payload)
