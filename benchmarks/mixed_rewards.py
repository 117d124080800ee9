"""Two rewards of different scale, right or wrong and colourful: what becomes of each, by how they are put together.

    python benchmarks/mixed_rewards.py [--seeds 0 1 2] [--rounds 25] [--jobs 2]

Runs of the default configuration on the built-in model: the raw sum, the sum of rewards brought to one scale (`normalise`), and GDPO.
Measured on 270 pictures of prompts that no run trains on, the same noise before and after; whether a picture is right is the held-out
judge's word. Writes benchmarks/results/mixed_rewards.json and the figures of docs/algorithms/gdpo.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.pages import fill, table
from benchmarks.shared.places import RESULTS, ROOT
from benchmarks.shared.training import train_once
from rlcm.processes.machine import describe_machine

TWO = "rewards=[composition, colourfulness]"
WAYS: dict[str, list[str]] = {
    "sum": [TWO],
    "sum, each `normalise: true`": ["rewards=[{name: composition, normalise: true}, {name: colourfulness, normalise: true}]"],
    "`gdpo`": [TWO, "algorithm.multi_reward=gdpo"],
}
"""How the rewards are put together, as changes of the default."""
MEASURED = {"right": "right, by the judge", "composition": "`composition`", "colourfulness": "`colourfulness`"}
FILE = RESULTS / "mixed_rewards.json"


def run(way: str, seed: int, rounds: int, output: Path) -> dict[str, Any]:
    """Train, unless that is done, and return each figure before and after, and how far the model is from its base."""
    fixed = ["prompts=world", "evaluation.prompts=world-unseen", "evaluation.images=270", "evaluation.every=0"]
    folder = train_once(output / f"{list(WAYS).index(way)}-{seed}", seed, [f"run.rounds={rounds}", *fixed, *WAYS[way]])
    evaluations = json.loads((folder / "eval.json").read_text())["evaluations"]
    figures = [{"right": e["judge"]["right"], **e["rewards"]} for e in (evaluations[0], evaluations[-1])]
    found = {key: {"before": figures[0][key]["mean"], "after": figures[1][key]["mean"]} for key in MEASURED}
    return {"way": way, "seed": seed, "rounds": rounds, **found, "kl": evaluations[-1]["kl"]["mean"]}


def text(runs: Sequence[dict[str, Any]]) -> str:
    """Return the table of the page: the mean over the seeds, and the lowest and highest."""
    first = runs[0]
    rows = [["before", *(_number(first[key]["before"]) for key in MEASURED)]]
    for way in WAYS:
        mine = [one for one in runs if one["way"] == way]
        cells = []
        for key in MEASURED:
            values = [one[key]["after"] for one in mine]
            cells.append(f"{_number(mean(values))} ({_number(min(values))} to {_number(max(values))})")
        rows.append([way, *cells])
    seeds = len({one["seed"] for one in runs})
    about = f"{first['rounds']} rounds of the default, {seeds} seeds: the mean after them, and the lowest and highest seed."
    told = "On the hard reward no way is clearly better than another: their seeds overlap."
    return f"{about}\n\n{table(['', *MEASURED.values()], rows)}\n{told if alike(runs) else ''}\n"


def alike(runs: Sequence[dict[str, Any]]) -> bool:
    """Return whether the seeds of all ways overlap, by the judge and by the hard reward."""
    for key in ("right", "composition"):
        values = [[one[key]["after"] for one in runs if one["way"] == way] for way in WAYS]
        if max(map(min, values)) > min(map(max, values)):
            return False
    return True


def _number(value: float) -> str:
    return f"{value:.1f}" if value > 10 else f"{value:.3f}".lstrip("0")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing, and write the figures."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--rounds", type=int, default=25)
    options.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    options.add_argument(
        "--keep", type=Path, default=ROOT / "runs" / "mixed-rewards", help="a finished run in it is not made again"
    )
    given = options.parse_args(arguments)
    wanted = [(way, seed) for seed in given.seeds for way in WAYS]
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = list(pool.map(lambda one: run(one[0], one[1], given.rounds, given.keep), wanted))
    torch.set_num_threads(1)  # as every run has
    files.write(FILE, {"machine": describe_machine(), "runs": runs})
    fill("algorithms/gdpo.md", "measured", text(runs))
    print(text(runs))


if __name__ == "__main__":
    main()
