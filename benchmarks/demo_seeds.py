"""The demo with three seeds: how many pictures the held-out judge finds right before and after, how long it takes, how much memory.

    python benchmarks/demo_seeds.py [--seeds 0 1 2] [--keep runs/demo-seeds]

Writes benchmarks/results/demo.json, docs/demo.md and the README's picture (of the first seed).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.pages import table
from benchmarks.shared.places import DOCS, IMAGES, RESULTS, ROOT
from rlcm.processes.machine import describe_machine
from rlcm.report import before_after_picture
from rlcm.report.words import asked, counted


def run(seed: int, output: Path) -> dict[str, Any]:
    """Run the demo in a process of its own and return its figures."""
    name = f"seed-{seed}"
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcm", "train", "demo", f"name={name}", f"seed={seed}", f"output={output}"]
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the demo failed with seed {seed}")
    found = json.loads((output / name / "eval.json").read_text())["evaluations"]
    before, after = found[0], found[-1]
    return {
        "seed": seed,
        "reward": {"before": before["reward"]["mean"], "after": after["reward"]["mean"]},
        "judge": {
            question: {"before": before["judge"][question]["mean"], "after": value["mean"]}
            for question, value in after["judge"].items()
        },
        "images": after["images"],
        "training_seconds": after["seconds"],
        "whole_command_seconds": time.monotonic() - started,
        "peak_memory_mb": usage.ru_maxrss / 1024,
        "curve": [
            {key: e[key] for key in ("round", "seconds")}
            | {"reward": e["reward"]["mean"], "right": e["judge"]["right"]["mean"]}
            for e in found
        ],
    }


def page(results: list[dict[str, Any]], machine: str) -> str:
    """Return docs/demo.md."""
    rows = []
    for found in results:
        judge, reward = found["judge"]["right"], found["reward"]
        points = 100 * (judge["after"] - judge["before"])
        rows.append(
            [
                *(str(found["seed"]), f"{judge['before']:.1%}", f"{judge['after']:.1%}", f"{points:+.1f}"),
                *(f"{reward['before']:.3f}", f"{reward['after']:.3f}"),
                *(f"{found['whole_command_seconds']:.0f} s", f"{found['peak_memory_mb'] / 1000:.2f} GB"),
            ]
        )
    kinds = [question for question in results[0]["judge"] if question != "right"]
    means = [{when: fmean(found["judge"][kind][when] for found in results) for when in ("before", "after")} for kind in kinds]
    by_kind = [[asked(k), f"{m['before']:.1%}", f"{m['after']:.1%}"] for k, m in zip(kinds, means, strict=True)]
    heads = ["seed", "right before", "right after", "points", "reward before", "reward after", "whole command", "peak memory"]
    return f"""# The demo, measured

`make demo` teaches the built-in model to draw what was asked. Untuned, the model draws the wrong number, place or colour in about
half of its pictures. Below, the demo with {counted(len(results), "seed")}: the share of pictures in which the held-out judge finds all
that was asked for, before and after, on {results[0]["images"]} fixed pictures of prompts that were not trained on (`world-unseen`).
The reward is the mean probability of the demands (`composition`, graded), by another detector; no reward uses the judge.

{table(heads, rows)}
By kind of prompt, mean of the seeds:

{table(["what was judged", "right before", "right after"], by_kind)}
Machine: {machine}. Command: `python benchmarks/demo_seeds.py`; the curves are in `benchmarks/results/demo.json`.
"""


def main() -> None:
    """Run all seeds and write the results."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--keep", type=Path, default=ROOT / "runs" / "demo-seeds")
    arguments = options.parse_args()
    machine = describe_machine()
    results = [run(seed, arguments.keep) for seed in arguments.seeds]
    files.write(RESULTS / "demo.json", {"machine": machine, "runs": results})
    (DOCS / "demo.md").write_text(page(results, machine))
    before_after_picture(arguments.keep / f"seed-{arguments.seeds[0]}", IMAGES / "demo.png")
    print(page(results, machine))


if __name__ == "__main__":
    main()
