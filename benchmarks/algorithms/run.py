"""The whole study: every method on every task with every seed, then its summary, plots and page.

    python -m benchmarks.algorithms [--tasks ...] [--methods ...] [--seeds 0 1 2] [--budget 45] [--jobs 2] [--root NEW --with-search]

Each run is a process of its own with one thread and a budget of CPU seconds. What is there already, from the same
configuration and budget, is not measured again: an interrupted study goes on where it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.algorithms.design import chosen
from benchmarks.algorithms.measure import RunKey
from benchmarks.algorithms.methods import METHODS, TASKS, UNTRAINED, methods_of
from benchmarks.algorithms.page import write_study
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS, ROOT


def wanted(tasks: Sequence[str], methods: Sequence[str] | None, seeds: Sequence[int], results: Path) -> list[RunKey]:
    """Return the runs of a study, one seed of everything before the next, and the untrained model once a task.

    Args:
        methods: those to run; None: of each task those that were searched on it.
    """
    keys = [RunKey(task, UNTRAINED, 0) for task in tasks]
    of = {t: [m for m in methods_of(t) if (m in methods if methods else chosen(results, t, m))] for t in tasks}
    return keys + [RunKey(t, m, seed) for seed in seeds for t in tasks for m in of[t]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the study."""
    options = parser(__doc__, prog="python -m benchmarks.algorithms")
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options.add_argument("--methods", nargs="+", choices=METHODS, help="those that were searched, if left out")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--budget", type=float, default=45.0, help="CPU seconds of training a run")
    options.add_argument("--jobs", type=int, default=2, help="runs side by side")
    options.add_argument("--root", type=Path, default=ROOT, help="folder for benchmarks/results and docs; the repository's")
    options.add_argument(
        "--with-search", action="store_true", help="with --root: the settings that the repository's search chose"
    )
    options.add_argument("--no-runs", action="store_true", help="write summary, plots and page of what is there")
    given = options.parse_args(arguments)
    results = given.root / "benchmarks" / "results" / "algorithms"
    if given.with_search:
        shutil.copytree(RESULTS / "algorithms" / "search", results / "search", dirs_exist_ok=True)
    failed = []
    if not given.no_runs:
        keys = wanted(given.tasks, given.methods, given.seeds, results)
        missing = [key for key in keys if not key.done(results, given.budget)]
        print(f"{len(keys) - len(missing)} of {len(keys)} runs are there already", flush=True)
        started = time.monotonic()
        with ThreadPoolExecutor(given.jobs) as pool:
            try:
                for number, (key, error) in enumerate(
                    pool.map(lambda k: (k, in_a_process(k, given.budget, results)), missing), 1
                ):
                    minutes = (time.monotonic() - started) / 60
                    print(f"{number}/{len(missing)} {key.file(Path()).stem} {minutes:.1f} min {error}".rstrip(), flush=True)
                    if error:
                        failed.append(key)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)  # runs under way got the interrupt as well
                raise SystemExit("interrupted; the same command goes on") from None
    write_study(results, given.root, given.budget)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(key.file(Path()).stem for key in failed)}")


def in_a_process(key: RunKey, budget: float, results: Path) -> str:
    """Measure one run in a process of its own; return the last line of its error, or nothing."""
    command = [sys.executable, "-m", "benchmarks.algorithms.measure", key.task, key.method, str(key.seed)]
    command += [] if key.number is None else ["--try", str(key.number)]
    process = subprocess.run(
        [*command, "--budget", str(budget), "--results", str(results.absolute())],
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
