"""How many kernels an image takes, and how many a state that is learnt from: the built-in model, with and without the compiler.

    python benchmarks/launches.py [--rounds 3] [--out benchmarks/results/launches.json]

On a GPU every kernel costs its launch, whatever it computes, so small models wait for launches. torch.profiler counts them on a
CPU as well: operations that call no other. The time of a round beside it is that of a CPU, as a ratio, and says nothing of a
GPU. Writes a table in docs/performance.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.pages import fill, table
from benchmarks.shared.places import RESULTS
from benchmarks.shared.plain import plain
from rlcm import Trainer
from rlcm.processes.machine import describe_machine
from rlcm.tuning.saying import quiet

RESULT = RESULTS / "launches.json"
IMAGES = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "branched, 8 to a state": {"rollout": {"branches": 8}},
    "constant shapes": {"algorithm": {"old_policy": "learning"}},
    "compiled": {"model": {"compile": True}},
}


def brightness(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    """Return the mean of every picture: a reward that costs nothing."""
    return images.mean((1, 2, 3))


def measure(changes: dict[str, Any], rounds: int) -> dict[str, float]:
    """Return the kernels of an image's sampling and of a state's learning, and the seconds of a round."""
    values: dict[str, Any] = {
        "sampler": {"steps": 4},
        "rollout": {"batch_size": IMAGES, "sample_batch_size": IMAGES, **changes.get("rollout", {})},
        "model": changes.get("model", {}),
        "algorithm": changes.get("algorithm", {}),
        "run": {"tracker": "none", "micro_batch_size": 16},
        "evaluation": {"images": 2},
    }
    with tempfile.TemporaryDirectory() as folder:
        made = Trainer(plain(values | {"output": folder}), rewards=[brightness], prompts=["a fox", "a cat"])
        for _ in range(2):  # the first one compiles, where something is compiled
            made.round()
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            made.round()
            seconds.append(time.perf_counter() - started)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            made.round()
    kernels = sum(not event.cpu_children for event in seen.events() or ())
    return {"kernels": kernels, "kernels_an_image": kernels / IMAGES, "seconds": median(seconds)}


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=RESULT)
    arguments = options.parse_args()
    quiet()
    torch.set_num_threads(1)
    found = {name: measure(changes, arguments.rounds) for name, changes in VARIANTS.items()}
    results.write(arguments.out, {"machine": describe_machine(), "images": IMAGES, "variants": results.rounded(found)})
    plain = found["plain"]
    rows = []
    for name, row in found.items():
        kernels, seconds = row["kernels"] / plain["kernels"], row["seconds"] / plain["seconds"]
        rows.append([name, f"{row['kernels_an_image']:,.0f}", f"{kernels:.2f}", f"{seconds:.2f}"])
    text = table(["a round of the built-in model, 4 steps", "kernels an image", "of plain", "time of plain, on this CPU"], rows)
    text += f"\n{IMAGES} images a round, a micro-batch of 16 states. Machine: {describe_machine()}."
    print(text)
    if arguments.out == RESULT:
        fill("performance.md", "kernels", text)


if __name__ == "__main__":
    main()
