"""How much of a reward's time hides behind sampling: rounds with a reward that takes as long as sampling.

    python benchmarks/overlap.py [--repeats 7] [--out benchmarks/results/overlap.json]

A repeat is three rounds side by side, so that a slow spell of the machine hits all: one with a reward that takes no time, one
with a reward that waits as long as the sampling of the first took, and again one without. With s the mean sampling time of the
outer two, r what the reward of the middle one took by itself, and t the time from its first network call to its last score,

    over_longer = t / max(s, r)        over_sum = t / (s + r)

The scoring of one sample batch runs beside the sampling of the next, so that of n equal ones only the last one's shows: at best
over_longer = 1 + 1/n.

here     a reward of this process that sleeps
server   a real server process (`rlcm rewards serve`) whose reward sleeps, asked over HTTP
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS
from benchmarks.shared.plain import plain
from rlcm import TrainConfig, Trainer
from rlcm.processes.machine import describe_machine
from rlcm.rewards.served.http import HttpReward

IMAGES = 64
PAUSE = Path(tempfile.mkdtemp()) / "seconds.txt"


class Wait:
    """The mean of every picture, after as many seconds as stand in a file: served, its pace can still be set.

    Args:
        file: holds a number.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the means [B] of images [B, 3, h, w], late."""
        time.sleep(float(self.file.read_text() or 0))
        return images.mean((1, 2, 3))


class Timed:
    """A reward, and how many seconds its calls took."""

    def __init__(self, reward: Callable[[Tensor, Sequence[str]], Any]) -> None:
        self.reward, self.seconds = reward, 0.0

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Any:
        """Return what the reward returns."""
        started = time.perf_counter()
        try:
            return self.reward(images, prompts)
        finally:
            self.seconds += time.perf_counter() - started


def trainer(reward: Timed, batches: int) -> Trainer:
    """Return plain RLCM on the built-in model, its round sampled in so many batches."""
    settings = {
        "rollout": {"batch_size": IMAGES, "sample_batch_size": IMAGES // batches},
        "sampler": {"steps": 4, "guidance": 3.0},
        "optimizer": {"lr": 1e-4},
        "run": {"tracker": "none"},
        "output": tempfile.mkdtemp(),
    }
    return Trainer(plain(settings), rewards=[reward])


def set_pause(seconds: float) -> None:
    """Let every further call of `Wait` take so long."""
    PAUSE.write_text(f"{seconds:.6f}")


def measure(reward: Timed, batches: int, repeats: int) -> dict[str, Any]:
    """Return the ratios of a number of repeats, and their medians."""
    made = trainer(reward, batches)
    set_pause(0)
    made.round()
    rows: list[dict[str, float]] = []
    free = made.round()["time/sample"]
    for _ in range(repeats):
        set_pause(free / batches)
        reward.seconds = 0.0
        found = made.round()
        took = reward.seconds
        set_pause(0)
        after = made.round()["time/sample"]
        sampling, free = (free + after) / 2, after
        together = found["time/sample"] + found["time/reward_wait"]
        rows.append(
            {
                "over_longer": together / max(sampling, took),
                "over_sum": together / (sampling + took),
                "round_over_longer": (together + found["time/update"]) / max(sampling, took),
                "waiting": found["time/reward_wait"] / (together + found["time/update"]),
                "sampling_seconds": sampling,
                "reward_seconds": took,
            }
        )
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {"sample_batches": batches, "at_best": 1 + 1 / batches, "median": medians, "all": rows}


@contextmanager
def server() -> Iterator[str]:
    """Serve `Wait` in a process of its own and yield its address."""
    reward = json.dumps({"name": f"{Path(__file__).resolve()}:Wait", "args": {"file": str(PAUSE)}})
    command = [sys.executable, "-m", "rlcm", "rewards", "serve", "--rewards", reward, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--out", type=Path, default=RESULTS / "overlap.json")
    arguments = options.parse_args()
    set_pause(0)
    here = {str(n): measure(Timed(Wait(str(PAUSE))), n, arguments.repeats) for n in (2, 4, 8)}
    with server() as address:
        remote = Timed(HttpReward(address=address))
        served = {str(n): measure(remote, n, arguments.repeats) for n in (4, 8)}
    result = {
        "machine": describe_machine(),
        "images": IMAGES,
        "seed": TrainConfig().seed,
        "repeats": arguments.repeats,
        "here": here,
        "server": served,
    }
    results.write(arguments.out, result)
    for place, found in (("here", here), ("server", served)):
        for entry in found.values():
            numbers = "  ".join(f"{key} {value:.3f}" for key, value in entry["median"].items())
            print(f"{place:6}  {entry['sample_batches']} batches  {numbers}")


if __name__ == "__main__":
    main()
