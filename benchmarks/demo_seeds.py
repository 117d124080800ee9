"""The demo with three seeds: what it does to the JPEG size and to the held-out judge, how long it takes, how much memory.

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
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.places import DOCS, IMAGES, RESULTS, ROOT
from rlcm.processes.machine import describe_machine
from rlcm.report import before_after_picture


def run(seed: int, output: Path) -> dict[str, Any]:
    """Run the demo in a process of its own and return its figures."""
    name = f"seed-{seed}"
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "rlcm", "train", f"name={name}", f"seed={seed}", f"output={output}"])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the demo failed with seed {seed}")
    found = json.loads((output / name / "eval.json").read_text())["evaluations"]
    before, after = found[0], found[-1]
    size = {"before_kb": -before["reward"]["mean"], "after_kb": -after["reward"]["mean"]}
    judge = {"before": before["judge"]["animal"]["mean"], "after": after["judge"]["animal"]["mean"]}
    return {
        "seed": seed,
        "jpeg": size | {"fall": 1 - size["after_kb"] / size["before_kb"]},
        "judge_animal": judge | {"fall_points": 100 * (judge["before"] - judge["after"])},
        "images": after["images"],
        "training_seconds": after["seconds"],
        "whole_command_seconds": time.monotonic() - started,
        "peak_memory_mb": usage.ru_maxrss / 1024,
        "curve": [{key: e[key] for key in ("round", "seconds")} | {"kb": -e["reward"]["mean"]} for e in found],
    }


def page(results: list[dict[str, Any]], machine: str) -> str:
    """Return docs/demo.md."""
    rows = "".join(
        f"| {r['seed']} | {r['jpeg']['before_kb']:.3f} | {r['jpeg']['after_kb']:.3f} | {r['jpeg']['fall']:.1%} | "
        f"{r['judge_animal']['before']:.1%} | {r['judge_animal']['after']:.1%} | {r['judge_animal']['fall_points']:+.1f} | "
        f"{r['whole_command_seconds']:.0f} s | {r['peak_memory_mb'] / 1000:.2f} GB |\n"
        for r in results
    )
    return f"""# The demo, measured

`make demo` tunes the built-in model to smaller JPEG files. Below, the same with {len(results)} seeds: mean JPEG size (quality 95,
kB) and share of animals that the held-out judge recognises, on {results[0]["images"]} fixed pictures
(the training prompts, seeds of their own), before and after. No reward uses the judge.

| seed | kB before | kB after | size falls by | judge before | judge after | judge falls by (points) | whole command | peak memory |
|---|---|---|---|---|---|---|---|---|
{rows}
Bars: size falls by at least 25 %, the judge by at most 5 points, at most 4 minutes and 2 GB.

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
