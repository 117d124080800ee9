"""Many rounds of a small run in one process: does it grow? Memory slope, open files and threads.

    python benchmarks/soak.py [--rounds 2000] [--threads 1]

Everything that a run does is in it: evaluations, checkpoints and their retention, the tracker, metrics. Writes
benchmarks/results/soak.json. Bars: memory grows by less than 1 MB per 100 rounds after the first 200; open files stay as many.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.pages import fill
from benchmarks.shared.places import RESULTS
from benchmarks.shared.plain import plain
from rlcm import Trainer
from rlcm.processes.machine import describe_machine
from rlcm.training.config import TrainConfig
from rlcm.tuning.saying import quiet

RESULT = RESULTS / "soak.json"
WARM_UP = 200
"""Rounds that are left out of the slope: caches fill in them."""
LARGEST_SLOPE = 1.0
"""MB per 100 rounds."""


class Watch:
    """A trainer's watcher that notes, every ten rounds, what the process takes up."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.rows: list[dict[str, float]] = []
        self.started = time.monotonic()

    def note(self, text: str) -> None:
        """Take a line for the user."""
        print(text, flush=True)

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        """Take a finished round's metrics."""
        number = int(metrics["round"])
        if number % 10:
            return
        self.rows.append(
            {
                "round": number,
                "memory_mb": self.process.memory_info().rss / 1e6,
                "open_files": self.process.num_fds(),
                "threads": self.process.num_threads(),
            }
        )
        if number % 100 == 0:
            print(f"{time.monotonic() - self.started:6.0f} s  {self.rows[-1]}", flush=True)


def small_run(folder: Path, rounds: int) -> TrainConfig:
    """Return the configuration of the run: two images of two steps a round, and everything else that runs do."""
    return plain(
        {
            "name": "soak",
            "output": str(folder),
            "sampler": {"steps": 2},
            "lora": {"ema_decay": 0.9},
            "rollout": {"batch_size": 2},
            "algorithm": {"kl_coefficient": 0.1, "inner_epochs": 2, "stat_buffer_size": 8, "stat_min_count": 2},
            "evaluation": {"images": 4, "every": 100, "grid": 4},
            "run": {"rounds": rounds, "save_every": 20, "keep_last": 2},
        },
    )


def main() -> None:
    """Run it and write what was seen."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=2000)
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet()
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(small_run(Path(folder), arguments.rounds), watcher=watch)
        trainer.train()
    if trainer.round_number < arguments.rounds:
        raise SystemExit(f"interrupted after round {trainer.round_number}")
    after = [row for row in watch.rows if row["round"] > WARM_UP]
    slope = 100 * float(np.polyfit([row["round"] for row in after], [row["memory_mb"] for row in after], 1)[0])
    # The least of a stretch: TensorBoard's thread has its file open for moments.
    fifth = len(after) // 5
    files = [min(int(row["open_files"]) for row in part) for part in (after[:fifth], after[-fifth:])]
    found = {
        "machine": describe_machine(),
        "rounds": arguments.rounds,
        "seconds": round(time.monotonic() - watch.started, 1),
        "memory_mb_per_100_rounds": round(slope, 4),
        "open_files_first_and_last_fifth": files,
        "threads": sorted({row["threads"] for row in after}),
        "passed": slope < LARGEST_SLOPE and files[0] == files[1],
        "rows": [row for row in watch.rows if row["round"] % 50 == 0],
    }
    results.write(RESULT, found)
    fill(
        "reliability.md",
        "soak",
        f"After the first {WARM_UP} rounds, memory grew by {slope:.3f} MB per 100 rounds (bar: {LARGEST_SLOPE:g}); "
        f"at the least {files[0]} files were open in the first fifth of the rounds and {files[1]} in the last, and at the most "
        f"{max(row['open_files'] for row in after)} at any time; {found['rounds']} rounds in "
        f"{found['seconds']:.0f} s. "
        f"Machine: {found['machine']}.",
    )
    print({key: value for key, value in found.items() if key != "rows"})


if __name__ == "__main__":
    main()
