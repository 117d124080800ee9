"""The pictures of `rlcm ui` that show what became of the demo: its runs, and one prompt through a training.

    python benchmarks/ui_pictures.py runs/demo-seeds          needs playwright and a Chromium

The runs are those of `benchmarks/demo_seeds.py`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared.browser import opened, served_runs, started_browser
from benchmarks.shared.command import parser
from benchmarks.shared.places import IMAGES

RUN, PROMPT, ROUND = "seed-0", "three balloons", "40"
"""The prompt and round that are shown; the prompt is one of `world-unseen`, the round one with an evaluation."""


def main() -> None:
    """Start the page, take its pictures, and end it."""
    options = parser(__doc__)
    options.add_argument("runs", type=Path, nargs="?", default=Path("runs/demo-seeds"), help="a folder of runs")
    with served_runs(options.parse_args().runs) as address, started_browser() as browser:
        of_runs(opened(browser, address))
        of_samples(opened(browser, address))


def of_runs(page: Page) -> None:
    """Take the runs with their curves."""
    page.locator(f'#runs [data-run="{RUN}"]').click()
    page.wait_for_selector(f"#run-head .eyebrow:has-text('{RUN}')")
    page.wait_for_selector("#run-curves svg")
    page.wait_for_timeout(1000)  # what fades in has done so
    page.screenshot(path=IMAGES / "ui-runs.png")


def of_samples(page: Page) -> None:
    """Take one prompt and seed before and in the middle of a training."""
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
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / "ui-samples.png")


if __name__ == "__main__":
    main()
