"""What all parts of the page share, and how they show what goes wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gradio as gr

from rlcm.errors import RLCMError
from rlcm.ui import fragments
from rlcm.ui.folder import RunsFolder
from rlcm.ui.jobs import Jobs
from rlcm.ui.playground import Studios

R = TypeVar("R")

PICK = """
element.addEventListener('click', event => {
  const chosen = event.target.closest('[data-run], [data-cell], [data-prompt]');
  if (chosen) trigger('select', {...chosen.dataset});
});
"""
"""Of parts that hold buttons: a click tells which of them it was."""


@dataclass(slots=True)
class Desk:
    """The runs, their processes and the loaded models behind a page."""

    runs: RunsFolder
    jobs: Jobs
    studios: Studios = field(default_factory=Studios)


def changed(seen: dict[str, int], parts: dict[str, str]) -> tuple[list[Any], dict[str, int]]:
    """Return for every part its HTML where it is another than the one `seen`, else a skip; and what is seen now.

    What is not sent again keeps its place: a page that is looked at does not jump.
    """
    now = {name: hash(html) for name, html in parts.items()}
    sent = [gr.skip() if seen.get(name) == now[name] else html for name, html in parts.items()]
    return sent, seen | now


def in_words(function: Callable[..., R]) -> Callable[..., R | str]:
    """Return a function whose errors come out as a box of HTML in place of its answer.

    Be it what it may: the files of a run are anybody's, and one run must not take the page with it.
    """

    @functools.wraps(function)
    def safely(*args: Any, **kwargs: Any) -> R | str:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            return fragments.notices(("error", "That did not work", in_brief(error)))

    return safely


def in_brief(error: Exception) -> str:
    """Return an error in words: the product's own say all themselves."""
    return str(error) if isinstance(error, RLCMError) else f"{type(error).__name__}: {error}"


def run_menu(names: list[str], chosen: str | None) -> dict[str, Any]:
    """Return the update of a menu of runs: the chosen one, or the first."""
    value = chosen if chosen in names else next(iter(names), None)
    return gr.update(choices=names, value=value, interactive=bool(names))
