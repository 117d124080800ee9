"""How long a pair of pictures takes in the playground of `rlcm ui`: the built-in model on a CPU, 4 steps, base and tuned.

python benchmarks/ui_pair.py          writes benchmarks/results/ui_pair.json; needs rlcm[ui], playwright and a Chromium

Measured twice after a warm-up: drawing, scoring, judging and encoding alone, and from the click to the picture in a browser.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from rlcm import Trainer
from rlcm.builtin import DEMO
from rlcm.cli.saying import quiet
from rlcm.processes.machine import describe_machine
from rlcm.training.config import load_config
from rlcm.ui import fragments
from rlcm.ui.playground import Studios

OUT = Path(__file__).parent / "results" / "ui_pair.json"
PAIRS, STEPS = 20, 4


def main() -> None:
    """Measure and write."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        short = ["name=short", f"output={folder}", "run.rounds=1", "evaluation.images=8", "evaluation.every=0"]
        run = Trainer(load_config(DEMO, short)).train()
        found = {"drawing": drawing(run), "click_to_picture": clicking(Path(folder))}
    OUT.write_text(
        json.dumps({"machine": describe_machine(), "steps": STEPS, "pairs": PAIRS, "seconds": found}, indent=2) + "\n"
    )
    print(OUT.read_text())


def drawing(run: Path) -> dict[str, float]:
    """Return the time of a pair without a browser: two pictures, their rewards, the judge, two PNG files, the HTML."""
    studios, times = Studios(), []
    for seed in range(PAIRS + 2):
        started = time.perf_counter()
        drawn, metric = studios.draw(run, "a fox", seed, STEPS, 1.0)
        fragments.pair(drawn, metric, 0.0)
        times.append(time.perf_counter() - started)
    return described(times[2:])


def clicking(folder: Path) -> dict[str, float]:
    """Return the time from a click on Draw until both new pictures stand in the page."""
    command = [sys.executable, "-m", "rlcm", "ui", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    times = []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(address)
            page.wait_for_selector("#runs .card")
            page.get_by_role("tab", name="Playground").click()
            page.wait_for_function("document.querySelector('#play-run input').value === 'short'")
            for seed in range(PAIRS + 2):
                page.locator("#play-seed input").fill(str(seed))
                started = time.perf_counter()
                page.locator("#play-draw").click()
                page.wait_for_selector(f"#play-view .quiet:has-text('seed {seed},')")
                times.append(time.perf_counter() - started)
            browser.close()
    finally:
        server.terminate()
        server.wait()
    return described(times[2:])


def described(times: Sequence[float]) -> dict[str, Any]:
    """Return the median and the slowest, in seconds."""
    return {"median": round(statistics.median(times), 3), "slowest": round(max(times), 3)}


if __name__ == "__main__":
    main()
