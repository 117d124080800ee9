"""The same training with and without its leash: the picture of docs/how-to/reading-the-curves.md.

    python benchmarks/curves.py [--output runs/curves] [--rounds 75]

Runs that are finished are not done again. Writes benchmarks/results/curves.json and docs/images/curves.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from rlcm import Trainer, load_config
from rlcm.builtin import DEMO
from rlcm.processes.machine import describe_machine
from rlcm.report.drawing import PALETTE, STYLE, Line, draw_chart

ROOT = Path(__file__).parent.parent
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
        ]
        Trainer(load_config(DEMO, [*fixed, *changes])).train()
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
        "judge": [look["judge"]["animal"]["mean"] for look in looks],
        "diversity": [look["guard"]["diversity"] for look in looks],
        "seconds": rounds[-1]["seconds"],
    }


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw reward, divergence, judge and diversity of the runs over their rounds."""
    panels = (("reward", "round", "reward: minus kB"), ("kl", "round", "kl"), ("judge", "look", "judge: animals recognised"),
              ("diversity", "look", "guard.diversity"))  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        for place, (key, abscissa, label) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            lines = [
                Line(name, values[abscissa], values[key], measured=abscissa == "look", colour=colour)
                for (name, values), colour in zip(found.items(), PALETTE, strict=False)
            ]
            draw_chart(place, lines, "round", label, floor=None if key == "reward" else 0.0)
        figure.savefig(file, dpi=110, metadata={"Software": None})


def main() -> None:
    """Train, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/curves"))
    parser.add_argument("--rounds", type=int, default=75)
    options = parser.parse_args()
    found = {name: figures(run(name, changes, options.output, options.rounds)) for name, changes in RUNS.items()}
    results = {"machine": describe_machine(), "runs": found}
    (ROOT / "benchmarks" / "results" / "curves.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(found, ROOT / "docs" / "images" / "curves.png")


if __name__ == "__main__":
    main()
