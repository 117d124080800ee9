"""The pictures of `rlcm ui` that show what became of the demo: its runs, and one prompt through a training.

    python benchmarks/ui_pictures.py runs/demo-seeds          needs playwright and a Chromium

The runs are those of `benchmarks/demo_seeds.py`.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from first_steps import started_browser
from playwright.sync_api import Page

IMAGES = Path(__file__).parent.parent / "docs" / "images"
RUN, PROMPT, ROUND = "seed-0", "a fox", "45"


def main(runs: Path) -> None:
    """Start the page, take its pictures, and end it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "rlcm", "ui", str(runs), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    try:
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
        with started_browser() as browser:
            of_runs(visit(browser.new_page(viewport={"width": 1280, "height": 800}), address))
            of_samples(visit(browser.new_page(viewport={"width": 1280, "height": 800}), address))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def visit(page: Page, address: str) -> Page:
    """Open the page and wait for its cards."""
    page.goto(address)
    page.wait_for_selector("#runs .card")
    return page


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
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-seeds"))
