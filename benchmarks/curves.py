"""The same training with and without its leash: the picture of docs/how-to/reading-the-curves.md.

    python benchmarks/curves.py [--output runs/curves] [--rounds 75]

Runs that are finished are not done again. Writes benchmarks/results/curves.json and docs/images/curves.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.figures import figure
from benchmarks.shared.places import IMAGES, RESULTS
from rlcm import Trainer, load_config
from rlcm.processes.machine import describe_machine
from rlcm.report.drawing import PALETTE, Line, draw_chart

RUNS = {
    "leashed": [],
    # A weight that pulls at nothing, so that the divergence is still measured.
    "without a leash": ["algorithm.kl_coefficient=1e-6", "algorithm.kl_target=null", "optimizer.max_pace=1"],
}


def run(name: str, changes: list[str], output: Path, rounds: int) -> Path:
    """Train and return the run's folder."""
    folder = output / name.replace(" ", "-")
    if not (folder / "final").is_dir():
        fixed = [
            f"name={folder.name}",
            f"output={output}",
            f"run.rounds={rounds}",
            "evaluation.every=5",
            "evaluation.images=90",
            "rewards=[jpeg_compressibility]",
            "prompts=world-objects",
        ]
        Trainer(load_config(None, [*fixed, *changes])).train()
    return folder


def figures(folder: Path) -> dict[str, Any]:
    """Return what the picture shows of a run."""
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    looks = json.loads((folder / "eval.json").read_text())["evaluations"]
    return {
        "round": [row["round"] for row in rounds],
        "reward": [row["reward"] for row in rounds],
        "kl": [row["kl"] for row in rounds],
        "look": [look["round"] for look in looks],
        "judge": [look["judge"]["right"]["mean"] for look in looks],
        "diversity": [look["guard"]["diversity_judge"] for look in looks],
        "seconds": rounds[-1]["seconds"],
    }


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw reward, divergence, judge and diversity of the runs over their rounds."""
    panels = (("reward", "round", "reward: minus kB"), ("kl", "round", "kl"), ("judge", "look", "judge: right pictures"),
              ("diversity", "look", "guard.diversity_judge"))  # fmt: skip
    with figure(file, 9, 5.4) as drawn:
        for place, (key, abscissa, label) in zip(drawn.subplots(2, 2).flat, panels, strict=True):
            lines = [
                Line(name, values[abscissa], values[key], measured=abscissa == "look", colour=colour)
                for (name, values), colour in zip(found.items(), PALETTE, strict=False)
            ]
            draw_chart(place, lines, "round", label, floor=None if key == "reward" else 0.0)


def main() -> None:
    """Train, measure and draw."""
    options = parser(__doc__)
    options.add_argument("--output", type=Path, default=Path("runs/curves"))
    options.add_argument("--rounds", type=int, default=75)
    arguments = options.parse_args()
    found = {name: figures(run(name, changes, arguments.output, arguments.rounds)) for name, changes in RUNS.items()}
    results.write(RESULTS / "curves.json", {"machine": describe_machine(), "runs": found}, indent=1)
    draw(found, IMAGES / "curves.png")


if __name__ == "__main__":
    main()
