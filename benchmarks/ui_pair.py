"""How long a pair of pictures takes in the playground of `rlcm ui`: the built-in model on a CPU, 4 steps, base and tuned.

    python benchmarks/ui_pair.py          writes benchmarks/results/ui_pair.json; needs rlcm[ui], playwright and a Chromium

Measured twice after a warm-up: drawing, scoring, judging and encoding alone, and from the click to the picture in a browser.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.browser import opened, served_runs, started_browser
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS
from rlcm import Trainer
from rlcm.processes.machine import describe_machine
from rlcm.training.config import load_config
from rlcm.tuning.saying import quiet
from rlcm.ui import fragments
from rlcm.ui.playground import Studios

OUT = RESULTS / "ui_pair.json"
PAIRS, STEPS = 20, 4


def main() -> None:
    """Measure and write."""
    parser(__doc__).parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        short = ["name=short", f"output={folder}", "run.rounds=1", "evaluation.images=8", "evaluation.every=0"]
        run = Trainer(load_config(None, short)).train()
        found = {"drawing": drawing(run), "click_to_picture": clicking(Path(folder))}
    results.write(OUT, {"machine": describe_machine(), "steps": STEPS, "pairs": PAIRS, "seconds": found})
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
    times = []
    with served_runs(folder) as address, started_browser() as browser:
        page = opened(browser, address)
        page.get_by_role("tab", name="Playground").click()
        page.wait_for_function("document.querySelector('#play-run input').value === 'short'")
        for seed in range(PAIRS + 2):
            page.locator("#play-seed input").fill(str(seed))
            started = time.perf_counter()
            page.locator("#play-draw").click()
            page.wait_for_selector(f"#play-view .quiet:has-text('seed {seed},')")
            times.append(time.perf_counter() - started)
    return described(times[2:])


def described(times: Sequence[float]) -> dict[str, Any]:
    """Return the median and the slowest, in seconds."""
    return {"median": round(statistics.median(times), 3), "slowest": round(max(times), 3)}


if __name__ == "__main__":
    main()
