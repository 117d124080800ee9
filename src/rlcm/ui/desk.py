"""What all parts of the page share, and how they show what goes wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gradio as gr

from rlcm.errors import RLCMError
from rlcm.report.run import Run
from rlcm.ui import fragments
from rlcm.ui.folder import RunsFolder
from rlcm.ui.jobs import Jobs
from rlcm.ui.playground import Studios

R = TypeVar("R")

PICK = """
element.addEventListener('click', event => {
  const chosen = event.target.closest('[data-run], [data-cell], [data-prompt], [data-do]');
  if (!chosen || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (chosen.dataset.run) history.replaceState(null, '', '?run=' + encodeURIComponent(chosen.dataset.run));
  trigger('select', {...chosen.dataset});
});
"""
"""Of parts that hold buttons: a click tells which of them it was; one on a run also gives the page the run's address."""

STAGE = """
let of = null, act = 0, frame = null, playing = null;
const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };  // else it would be seen as news
const pause = () => { clearInterval(playing); playing = null; };
const show = () => {
  const stage = element.querySelector('.stage');
  if (!stage) return pause();
  if (stage.dataset.of !== of) { of = stage.dataset.of; act = 0; frame = null; pause(); }
  const slider = stage.querySelector('[data-slider]');
  const last = slider ? Number(slider.max) : 0;
  const at = Math.max(0, Math.min(frame ?? Number(stage.dataset.start), last));
  stage.querySelectorAll('[data-act]').forEach(one => { one.hidden = Number(one.dataset.act) !== act; });
  stage.querySelectorAll('[data-frame]').forEach(one => { one.hidden = Number(one.dataset.frame) !== at; });
  stage.querySelectorAll('[data-turn]').forEach(one => one.setAttribute('aria-pressed', Number(one.dataset.turn) === act));
  if (!slider) return;
  slider.value = at;
  const now = stage.querySelector(`[data-frame="${at}"] figcaption b`).textContent;
  slider.setAttribute('aria-valuetext', now);
  write(stage.querySelector('output'), now);
  write(stage.querySelector('[data-play]'), playing ? '❚❚ Pause' : '▶ Play');
};
const step = () => {
  const last = Number(element.querySelector('[data-slider]')?.max ?? 0);
  frame = Math.min((frame ?? last) + 1, last);
  if (frame >= last) pause();
  show();
};
element.addEventListener('input', event => {
  if (!event.target.matches('[data-slider]')) return;
  pause();
  frame = Number(event.target.value);
  show();
});
element.addEventListener('click', event => {
  const turn = event.target.closest('[data-turn]');
  if (turn) act = Number(turn.dataset.turn);
  if (event.target.closest('[data-play]')) {
    const slider = element.querySelector('[data-slider]');
    if (playing) pause();
    else {
      if (Number(slider.value) >= Number(slider.max)) frame = 0;
      playing = setInterval(step, 700);
    }
  }
  show();
});
new MutationObserver(show).observe(element, {childList: true, subtree: true});
"""
"""Of the pictures through the rounds: the slider, its play button, and which prompt is shown; kept when new pictures come."""

MARK = """
const mark = () => {
  document.querySelectorAll('[data-invalid]').forEach(one => {
    one.removeAttribute('data-invalid');
    one.querySelectorAll('[aria-invalid]').forEach(input => input.removeAttribute('aria-invalid'));
  });
  const wrong = (element.querySelector('[data-wrong]')?.dataset.wrong ?? '').split(' ').filter(Boolean);
  const fields = wrong.map(id => document.getElementById(id)).filter(Boolean);
  fields.forEach(one => {
    one.dataset.invalid = 'yes';  // no class: Gradio writes its own over it
    one.querySelectorAll('input, textarea').forEach(input => input.setAttribute('aria-invalid', 'true'));
  });
  const phone = matchMedia('(max-width: 640px)').matches;
  if (phone && element.querySelector('.notice')) element.scrollIntoView({block: 'nearest'});
};
new MutationObserver(mark).observe(element, {childList: true, subtree: true});
"""
"""Of what is said about a form: the fields that it blames are marked."""

SWITCH = """
let axis = '0';
const show = () => {
  element.querySelectorAll('[data-chart]').forEach(one => { one.hidden = one.dataset.chart !== axis; });
  element.querySelectorAll('[data-axis]').forEach(one => one.setAttribute('aria-pressed', one.dataset.axis === axis));
};
element.addEventListener('click', event => {
  const chosen = event.target.closest('[data-axis]');
  if (chosen) axis = chosen.dataset.axis;
  show();
});
new MutationObserver(show).observe(element, {childList: true, subtree: true});
"""
"""Of one chart in two ways: against which of them; kept when new points come."""


@dataclass(slots=True)
class Desk:
    """The runs, their processes and the loaded models behind a page."""

    runs: RunsFolder
    jobs: Jobs
    studios: Studios = field(default_factory=Studios)
    _drawn: dict[str, tuple[Run, str]] = field(default_factory=dict)

    def drawn(self, part: str, run: Run, make: Callable[[], str]) -> str:
        """Return a part of a run as HTML, from memory where the run is the very one it was made of last."""
        known = self._drawn.get(part)
        if known is None or known[0] is not run:
            known = self._drawn[part] = (run, make())
        return known[1]


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
