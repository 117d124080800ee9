"""Teaching the model one's taste: pictures to choose from, and what it has become."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from rlcm.errors import RLCMError
from rlcm.report.templating import render
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.prompts import BUILT_IN, load_prompts
from rlcm.training.values import read_value
from rlcm.ui import fragments
from rlcm.ui.desk import Desk, in_brief
from rlcm.ui.teaching import VOTES_A_TRAINING, Question, Teaching, votes_place

NAME = "taught"
CHOOSE = """
const send = choice => {
  const asked = element.querySelector('[data-question]');
  if (!asked || asked.dataset.done) return;
  if (choice !== 'undo') asked.dataset.done = 'yes';
  trigger('select', {question: asked.dataset.question, choice: String(choice)});
};
element.addEventListener('click', event => {
  const chosen = event.target.closest('[data-choice]');
  if (chosen) send(chosen.dataset.choice);
});
document.addEventListener('keydown', event => {
  if (!element.isConnected || element.offsetParent === null) return;
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const count = element.querySelectorAll('.choice').length;
  if (event.key === '0') send('none');
  else if (event.key === 'Backspace') send('undo');
  else if (event.key >= '1' && event.key <= String(count)) send(Number(event.key) - 1);
  else return;
  event.preventDefault();
});
"""
"""A click or a key says which picture it was; a question is answered once."""


class Teachings:
    """What is being taught from this page, by name; each is loaded once."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._known, self._lock = desk, dict[str, Teaching](), threading.Lock()

    def begin(self, name: str, source: str) -> tuple[Teaching, str]:
        """Return the teaching of a name, and what to say where it has prompts of its own; errors as `Teaching`.

        One that nobody has answered yet takes these prompts.

        Args:
            source: prompts as they are typed for a setting: a set, a file, or a list in brackets.
        """
        prompts = parse_settings(TrainConfig, {"prompts": read_value(TrainConfig, "prompts", source.strip())}).prompts
        asked = load_prompts(prompts, own="Write prompts of your own in brackets: [a fox, a boat].").prompts
        with self._lock:
            known = self._known.get(name)
            if known is None or (known.is_new and known.prompts != asked):
                self._known[name] = known = Teaching(self._desk.jobs, name, prompts)
        goes_on = (
            f"It goes on with the prompts that it began with, such as {known.prompts[0]!r}. For others choose another name."
        )
        return known, "" if known.prompts == asked else goes_on

    def of(self, name: str, source: str) -> Teaching:
        """Return the teaching of a name, with the prompts that it began with; else as `begin`."""
        with self._lock:
            if name in self._known:
                return self._known[name]
        return self.begin(name, source)[0]


def teach_tab(desk: Desk, timer: gr.Timer, shown: gr.State) -> None:
    """Lay out the tab."""
    teachings = Teachings(desk)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            name = gr.Textbox(
                label="Name", info="Of the run. A new name starts over.", value=NAME, max_lines=1, elem_id="teach-name"
            )
            source = gr.Dropdown(
                label="Prompts", info="A set, a file of your own, or a list in brackets: [a fox, a boat].",
                choices=list(BUILT_IN), value="world", allow_custom_value=True, elem_id="teach-prompts",
            )  # fmt: skip
            begin = gr.Button("Begin, or go on", variant="primary", elem_id="teach-begin")
            standing = gr.HTML(elem_id="teach-standing")
        with gr.Column(scale=5, min_width=310):
            view = gr.HTML(
                _nothing("Show it what you like", "Begin, and choose the better picture again and again. The model learns meanwhile."),
                js_on_load=CHOOSE, elem_id="teach-view",
            )  # fmt: skip
    begun = gr.State(None)
    seen = gr.State(0)

    def start(name: str, source: str) -> list[Any]:
        try:
            teaching, said = teachings.begin(name.strip() or NAME, source)
            return [_asked(teaching.ask(), said, f"{teaching.name} has prompts of its own"), _told(teaching), teaching.name]
        except Exception as error:  # a run's files are anybody's
            return [_nothing("This cannot be taught", in_brief(error)), "", None]

    def answer(name: str | None, source: str, event: gr.EventData) -> str:
        if name is None:
            return _nothing("Nothing is being taught", "Begin first.")
        said = ""
        try:
            teaching = teachings.of(name, source)
            choice = str(event.choice)
            if choice == "undo":
                said = "" if teaching.undo() else "There is no vote to take back."
            else:
                teaching.vote(str(event.question), [] if choice == "none" else [int(choice)])
        except Exception as error:
            said = in_brief(error)
        return _asked(teachings.of(name, source).ask(), said)

    def learn(name: str | None, source: str) -> str:
        """Learn from the vote, train where it is time, and have the next questions ready: after the answer, beside the page."""
        if name is None:
            return ""
        teaching = teachings.of(name, source)
        try:
            teaching.train()
            teaching.prepare()
        except RLCMError as error:
            return fragments.notices(("error", "The model could not be trained", str(error)))
        return _told(teaching)

    def follow(name: str | None, source: str, shown: str, seen: int) -> list[Any]:
        if shown != "teach" or name is None:
            return [gr.skip(), gr.skip()]
        try:
            html = _told(teachings.of(name, source))
        except Exception as error:
            html = fragments.notices(("error", "That did not work", in_brief(error)))
        return [gr.skip(), gr.skip()] if hash(html) == seen else [html, hash(html)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    begin.click(start, [name, source], [view, standing, begun], show_progress="minimal", api_visibility="private")
    view.select(answer, [begun, source], view, **quiet).then(learn, [begun, source], standing, **quiet)
    timer.tick(follow, [begun, source, shown, seen], [standing, seen], **quiet)


def _nothing(title: str, text: str) -> str:
    return render("ui/templates/teach.html.jinja", question=None, title=title, text=text)


def _asked(question: Question, said: str = "", title: str = "That vote did not count") -> str:
    uris = [fragments.png(picture) for picture in question.pictures()]
    about = {"id": question.id, "prompt": question.prompt, "uris": uris}
    return render("ui/templates/teach.html.jinja", question=about, said=said, title=title)


def _told(teaching: Teaching) -> str:
    now = teaching.standing()
    rows = [
        {"prompt": prompt, "before": fragments.png(before), "after": fragments.png(after)}
        for prompt, before, after in now.compared
    ]
    folder = votes_place(teaching.jobs.folder, teaching.name)
    return render("ui/templates/taught.html.jinja", standing=now, rows=rows, needed=VOTES_A_TRAINING, folder=str(folder))
