"""Sampling and learning that round otherwise: how far the ratio is from 1 before any update, with old means of either.

    python benchmarks/precision.py [--demo] [--size 64] [--out benchmarks/results/precision.json]

Nothing differs between the two but one rounding of the network's output, which depends on the size of the batch, as on a GPU.
With `--demo` it first trains the demo for three seeds in fp32 and in simulated bf16; runs that the results have are not run
again. The committed results also become two tables of docs/precision.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rounding import demo, ratios
from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.pages import fill
from benchmarks.shared.places import RESULTS
from rlcm.processes.machine import describe_machine
from rlcm.tuning.saying import quiet

RESULT = RESULTS / "precision.json"


def train_demo(out: Path) -> None:
    """Train what is missing of the demo's runs, and write each as it ends."""
    for precision in reversed(demo.PRECISIONS):
        for seed in demo.SEEDS:
            if str(seed) in results.read_if_there(out).get("demo", {}).get(precision, {}):
                continue
            run = results.rounded(demo.train(precision, seed))
            kept = results.read_if_there(out)
            kept.setdefault("demo", {}).setdefault(precision, {})[str(seed)] = run
            results.write(out, kept)
            print(precision, seed, run, flush=True)


def texts(found: dict[str, Any]) -> dict[str, str]:
    """Return what docs/precision.md says of the results, by the names of its places."""
    said = {
        "precision ratios": f"{ratios.table_of(found['ratios'])}\n"
        f"{found['trajectories']} trajectories; latents of {found['ratios'][0]['latent_entries']:,} entries; sampled in batches of "
        f"{ratios.SAMPLED_AT_ONCE}, learnt in micro-batches of {ratios.LEARNT_AT_ONCE}. Where there are two numbers, they are those "
        f"of the best and of the worst step. Machine: {found['machine']}."
    }
    if demo.complete(found.get("demo", {})):
        said["precision demo"] = f"{demo.table_of(found['demo'])}\n{demo.words(found['demo'])}"
    return said


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__)
    options.add_argument("--demo", action="store_true", help="train the demo, too: a quarter of an hour")
    options.add_argument("--size", type=int, default=64, help="height and width of the latent")
    options.add_argument("--trajectories", type=int, default=64)
    options.add_argument("--out", type=Path, default=RESULT)
    arguments = options.parse_args()
    quiet()
    if arguments.demo:
        train_demo(arguments.out)
    rows = ratios.measure_all(arguments.size, arguments.trajectories)
    measured = {"machine": describe_machine(), "trajectories": arguments.trajectories, "ratios": results.rounded(rows)}
    found = measured | {"demo": results.read_if_there(arguments.out).get("demo", {})}
    results.write(arguments.out, found)
    for name, text in texts(found).items():
        print(f"{text}\n")
        if arguments.out == RESULT:
            fill("precision.md", name, text)


if __name__ == "__main__":
    main()
