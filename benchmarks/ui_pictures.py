"""The pictures of `rlcm ui`: runs of the demo, one prompt through a training, and a model that is being taught.

    python benchmarks/ui_pictures.py runs/demo-seeds [--only runs samples ...]          needs playwright and a Chromium

The runs are those of `benchmarks/demo_seeds.py`; for `compare` one of another method must lie beside them, such as
`rlcm train name=policy-gradient output=runs/demo-seeds rewards='[{name: composition, args: {graded: true}}]'
evaluation.prompts=world-unseen evaluation.images=135 run.rounds=30`. The one that is taught
and the one that is being trained are made here, and deleted.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared.browser import opened, served_runs, started_browser
from benchmarks.shared.command import parser
from benchmarks.shared.places import IMAGES
from benchmarks.voting.oracles import warm
from rlcm.rewards.image.pixels import from_uint8
from rlcm.ui.teaching import ROUNDS_A_TRAINING

RUN, PROMPT, ROUND, DRAWN = "seed-0", "an owl and a fox", "80", "a red heart and a blue boat"
"""The prompt and round that are shown; the prompt is one of `world-unseen`, the round one with an evaluation."""

TAUGHT, ROUNDS, PATIENCE = "warm", 2 * ROUNDS_A_TRAINING, 900_000
"""What is taught, to at least so many rounds, and how many milliseconds a vote or a training may take."""

NAMELESS = """folder => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(folder, '');
}"""
"""Takes the name of a folder out of the page."""


def main() -> None:
    """Start the page, take its pictures, and end it."""
    of_the_demo: dict[str, Callable[[Page], None]] = {
        "runs": of_runs, "samples": of_samples, "playground": of_drawing, "compare": of_methods, "phone": of_a_phone
    }  # fmt: skip
    every = [*of_the_demo, "train", "teach"]
    options = parser(__doc__)
    options.add_argument("runs", type=Path, nargs="?", default=Path("runs/demo-seeds"), help="a folder of runs")
    options.add_argument("--only", nargs="+", choices=every, default=every)
    given = options.parse_args()
    with started_browser() as browser:
        if wanted := {name: take for name, take in of_the_demo.items() if name in given.only}:
            with served_runs(given.runs) as address:
                for name, take in wanted.items():
                    page = opened(browser, address)
                    take(page)
                    page.wait_for_timeout(1000)  # what fades in has done so
                    page.evaluate(NAMELESS, f"{given.runs.absolute().parent}/")
                    page.screenshot(path=IMAGES / f"ui-{name}.png")
        if "train" in given.only:
            with tempfile.TemporaryDirectory(prefix="rlcm-trained-") as folder, served_runs(Path(folder, "runs")) as address:
                of_training(browser, address, folder)
        if "teach" in given.only:
            with tempfile.TemporaryDirectory(prefix="rlcm-taught-") as folder, served_runs(Path(folder, "runs")) as address:
                of_teaching(browser, address, folder)


def of_runs(page: Page) -> None:
    """Show a run with its pictures, tiles and curve."""
    page.set_viewport_size({"width": 1280, "height": 1130})
    page.locator(f'#runs [data-run="{RUN}"]').click()
    page.wait_for_selector(f"#run-head .eyebrow:has-text('{RUN}')")
    page.wait_for_selector(f"#run-stage [data-of='{RUN}']")
    page.wait_for_selector("#run-curve svg")


def of_samples(page: Page) -> None:
    """Show one prompt and seed before and in the middle of a training."""
    page.get_by_role("tab", name="Samples").click()
    page.wait_for_selector("#samples-view .sheet-of")
    page.locator("#samples-run input").click()
    page.get_by_role("option", name=RUN).click()
    page.wait_for_timeout(1000)
    page.locator("#samples-cell input").click()
    page.get_by_role("option", name=re.compile(rf"\b{PROMPT}$")).click()
    number = page.locator("#samples-round input[type=number]")
    number.fill(ROUND)
    number.press("Enter")
    page.wait_for_selector(f"#samples-view .duel figure:nth-child(2) :text('round {ROUND}')")


def of_drawing(page: Page) -> None:
    """Show a pair of pictures in the playground."""
    page.get_by_role("tab", name="Playground").click()
    page.locator("#play-run input").click()
    page.get_by_role("option", name=RUN).click()
    page.locator("#play-prompt textarea").fill(DRAWN)
    page.locator("#play-draw").click()
    page.wait_for_selector("#play-view .side")


def of_methods(page: Page) -> None:
    """Show the comparison of all runs."""
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#compare-view svg")


def of_a_phone(page: Page) -> None:
    """Show a run at the width of a phone."""
    of_runs(page)
    page.set_viewport_size({"width": 390, "height": 844})


def at_tab(browser: Browser, address: str, name: str, height: int) -> Page:
    """Open the page of `rlcm ui` where no run need be yet, and one of its tabs."""
    page = browser.new_page(viewport={"width": 1280, "height": height})
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.get_by_role("tab", name=name).click()
    return page


def of_training(browser: Browser, address: str, folder: str) -> None:
    """Start the default from the form and take the page while it is trained.

    Args:
        folder: of the folder of runs; it is no part of the picture.
    """
    page = at_tab(browser, address, "Train", 1100)
    page.locator("#set-name input, #set-name textarea").first.fill("mine")
    page.locator("#train-go").click()
    page.wait_for_selector("#train-log .log:has-text('s left')")
    page.wait_for_timeout(15_000)  # some rounds
    page.evaluate(NAMELESS, f"{folder}/")
    page.screenshot(path=IMAGES / "ui-train.png")
    page.get_by_role("tab", name="Runs").click()
    page.locator("#stop").click()
    page.wait_for_selector('#runs [data-run="mine"] .state.stopped')


def of_teaching(browser: Browser, address: str, folder: str) -> None:
    """Vote for the warmest pictures until the model was trained on it, and take it beside the base model.

    Args:
        folder: of the folder of runs; it is no part of the picture.
    """
    page = at_tab(browser, address, "Teach", 800)
    page.locator("#teach-name textarea, #teach-name input").first.fill(TAUGHT)
    page.locator("#teach-begin").click()
    rounds = 0
    while rounds < ROUNDS:
        page.wait_for_selector("#teach-view .choice")
        asked = page.locator("#teach-view [data-question]").get_attribute("data-question")
        page.keyboard.press(str(1 + _warmest(page)))
        page.wait_for_function(
            "asked => document.querySelector('#teach-view [data-question]').dataset.question !== asked", arg=asked
        )
        page.wait_for_timeout(1000)  # nobody votes faster, and it is being trained meanwhile
        told = re.search(r"trained, (\d+) rounds", page.locator("#teach-standing").inner_text())
        rounds = int(told[1]) if told else 0
    page.wait_for_selector("#teach-standing .compared img")
    page.wait_for_timeout(1000)
    page.evaluate(NAMELESS, f"{folder}/")
    page.screenshot(path=IMAGES / "ui-teach.png")
    page.wait_for_function("() => !/being trained/.test(document.querySelector('#teach-standing').innerText)", timeout=PATIENCE)
    page.set_viewport_size({"width": 1280, "height": 1000})
    page.get_by_role("tab", name="Runs").click()
    page.wait_for_selector(f"#run-stage [data-of='{TAUGHT}']")
    page.wait_for_selector("#run-curve svg")
    page.wait_for_timeout(1000)
    page.evaluate(NAMELESS, f"{folder}/")
    page.screenshot(path=IMAGES / "ui-taught.png")


def _warmest(page: Page) -> int:
    """Return the place of the warmest picture on the page, from 0."""
    uris = page.eval_on_selector_all("#teach-view .choice img", "found => found.map(image => image.src)")
    pictures = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB") for uri in uris]
    return int(warm(from_uint8(np.stack([np.asarray(picture) for picture in pictures])), [""] * len(pictures)).argmax())


if __name__ == "__main__":
    main()
