"""One search for every method: the same declared settings, the same number of tries, the same budget.

    python -m benchmarks.algorithms.search [--task jpeg_compressibility] [--methods ...] [--budget 45] [--minutes 30]

A try is a fifth of a result's length, on prompts and seeds that no result has. The best is the one with the highest sound reward
on its fixed set. All tries are kept, in benchmarks/results/algorithms/search/; what is there is not tried again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.algorithms.methods import COMMON, METHODS, methods_of
from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS, ROOT
from rlcm.settings import Changes, merge
from rlcm.training.prompts import load_prompts

SHARE = 0.2
"""Of a result's budget that a try gets."""
SEED = 1000
"""Of all tries; no result has it."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
IMAGES = (32, 64)
UPDATES = (1, 2)
LEASHES = (0.0, 0.1)
DESIGN = ((0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 0, 1), (1, 1, 1, 0), (2, 0, 1, 0), (2, 1, 0, 1), (3, 0, 1, 1), (3, 1, 0, 0))
"""Eight of the 32 combinations of rate, images, updates and leash, as an orthogonal array: of any two of them, every pair of values
comes equally often."""


def tries_of(method: str) -> list[Changes]:
    """Return the eight tries of a method as changes of its configuration; some methods take one update a round in all of them."""
    found: list[Changes] = []
    for rate, images, updates, leash in DESIGN:
        count = 1 if METHODS[method].one_update else UPDATES[updates]
        weight = LEASHES[leash]
        algorithm: dict[str, Any] = {"minibatches": count, "kl_coefficient": weight}
        found.append({"optimizer": {"lr": RATES[rate]}, "rollout": {"batch_size": IMAGES[images]}, "algorithm": algorithm})
    return found


def prompts() -> list[str]:
    """Return the prompts that tries are made on: single objects that no result has."""
    return [prompt for prompt in load_prompts("world-objects").prompts if prompt not in COMMON["prompts"]]


def file_of_try(results: Path, task: str, method: str, number: int) -> Path:
    """Return where what came of a try lies."""
    return results / "search" / f"{task}-{method}-{number}.json"


def values_of_try(method: str, number: int) -> Changes:
    """Return what a try changes of its method's configuration."""
    own = {"prompts": prompts(), "evaluation": {"seed": SEED}}
    return merge(tries_of(method)[number], own)


def chosen(results: Path, task: str, method: str) -> Changes:
    """Return the settings that a method's tries chose; nothing where it was not searched, or some tries are missing."""
    runs = [files.read_if_there(file_of_try(results, task, method, number)) for number in range(len(DESIGN))]
    if not all(runs):
        return {}
    best = max(range(len(runs)), key=lambda number: float(runs[number]["best"]["reward"]))
    return tries_of(method)[best]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tries that are missing, the first of every method before the second of any."""
    options = parser(__doc__, prog="python -m benchmarks.algorithms.search")
    options.add_argument("--task", default="jpeg_compressibility")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=None)
    options.add_argument("--budget", type=float, default=45.0, help="CPU seconds of training of a RESULT; a try has a fifth")
    options.add_argument("--minutes", type=float, default=None, help="begin no try after so many")
    options.add_argument("--results", type=Path, default=RESULTS / "algorithms")
    given = options.parse_args(arguments)
    started = time.monotonic()
    for number in range(len(DESIGN)):
        for method in given.methods or methods_of(given.task):
            file = file_of_try(given.results, given.task, method, number)
            if file.is_file():
                continue
            if given.minutes is not None and time.monotonic() - started > 60 * given.minutes:
                raise SystemExit(f"stopped before {file.stem}; the same command goes on")
            error = _try(given.task, method, number, given.budget, given.results)
            found = files.read_if_there(file)
            print(f"{file.stem}: {error or found['best']['reward']}", flush=True)


def _try(task: str, method: str, number: int, budget: float, results: Path) -> str:
    """Make a try in a process of its own; return the last line of its error, or nothing."""
    command = [sys.executable, "-m", "benchmarks.algorithms.measure", task, method, str(SEED), "--try", str(number)]
    process = subprocess.run(
        [*command, "--budget", str(SHARE * budget), "--results", str(results.absolute())],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return "" if process.returncode == 0 else (process.stderr.strip().splitlines() or ["failed"])[-1]


if __name__ == "__main__":
    main()
