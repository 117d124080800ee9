"""One search for every method: the same declared settings, the same number of tries, the same budget.

    python -m benchmarks.algorithms.search [--task jpeg_compressibility] [--methods ...] [--budget 45] [--jobs 2] [--minutes 30]

A try is a fifth of a result's length, on prompts and seeds that no result has. The best is the one with the highest sound reward
on its fixed set. All tries are kept, in benchmarks/results/algorithms/search/; what is there is not tried again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.algorithms.design import DESIGN, SEED, SHARE
from benchmarks.algorithms.measure import RunKey
from benchmarks.algorithms.methods import DDPO_SECOND, METHODS, methods_of
from benchmarks.algorithms.run import in_a_process
from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tries that are missing, the first of every method before the second of any."""
    options = parser(__doc__, prog="python -m benchmarks.algorithms.search")
    options.add_argument("--task", default="jpeg_compressibility")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=None)
    options.add_argument("--budget", type=float, default=45.0, help="CPU seconds of training of a RESULT; a try has a fifth")
    options.add_argument("--jobs", type=int, default=2, help="tries side by side; as many as the results get")
    options.add_argument("--minutes", type=float, default=None, help="begin no try after so many")
    options.add_argument("--results", type=Path, default=RESULTS / "algorithms")
    given = options.parse_args(arguments)
    started = time.monotonic()

    def one(key: RunKey) -> bool:
        if given.minutes is not None and time.monotonic() - started > 60 * given.minutes:
            return False
        file = key.file(given.results)
        error = in_a_process(key, SHARE * given.budget, given.results)
        found = files.read_if_there(file)
        print(f"{file.stem}: {error or found['best']['reward']}", flush=True)
        return True

    methods = given.methods or [name for name in methods_of(given.task) if name != DDPO_SECOND]  # which has its settings
    keys = [RunKey(given.task, method, SEED, number) for number in range(len(DESIGN)) for method in methods]
    missing = [key for key in keys if not key.file(given.results).is_file()]
    with ThreadPoolExecutor(given.jobs) as pool:
        begun = list(pool.map(one, missing))
    if not all(begun):
        raise SystemExit(f"stopped with {begun.count(False)} tries left; the same command goes on")


if __name__ == "__main__":
    main()
