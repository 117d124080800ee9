"""Simulated voters teach the built-in model: what is gained by votes of what is gained by asking what they like itself.

    python benchmarks/voters.py [--oracle warm low few] [--wrong 0 0.1 0.3] [--seeds 0 1 2] [--votes 200] [--minutes 60]

Trainings that are finished are not done again, so it may be stopped and started. With `--minutes` no training is begun after so
many; what is not done is said on the page. Writes benchmarks/results/voters.json, docs/voters.md and docs/images/voters.png.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.places import DOCS, IMAGES, RESULTS, ROOT
from benchmarks.voting.cells import Plan, cells, measured
from benchmarks.voting.oracles import ORACLES
from benchmarks.voting.page import draw, has_curve, page
from rlcm.processes.machine import describe_machine

PLAN = Plan(votes=200, votes_a_training=40, rounds_a_training=2, images=90, settings=("rollout.batch_size=32",))


def main() -> None:
    """Train what is not done yet, and write what came of it."""
    options = parser(__doc__)
    options.add_argument("--oracle", nargs="+", choices=list(ORACLES), default=list(ORACLES), help="the first has the curve")
    options.add_argument("--wrong", type=float, nargs="+", default=[0.0, 0.1, 0.3], help="shares of wrong votes")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--votes", type=int, default=PLAN.votes, help=f"a multiple of {PLAN.votes_a_training}")
    options.add_argument(
        "--rounds", type=int, default=PLAN.rounds_a_training, help=f"after every {PLAN.votes_a_training} votes"
    )
    options.add_argument("--minutes", type=float, default=None, help="begin no training after so many")
    options.add_argument("--work", type=Path, default=ROOT / "runs" / "voters", help="the folder of the trainings")
    given = options.parse_args()
    if given.votes < PLAN.votes_a_training or given.votes % PLAN.votes_a_training:
        options.error(f"--votes {given.votes} must be a multiple of {PLAN.votes_a_training}")
    plan = Plan(given.votes, PLAN.votes_a_training, given.rounds, PLAN.images, PLAN.settings)
    began, found, left = time.monotonic(), list[dict[str, Any]](), 0
    for cell in cells(given.oracle, given.wrong, given.seeds):
        if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
            left += 1
            continue
        found.append(measured(cell, plan, given.work, whole_curve=cell.oracle == given.oracle[0] and cell.wrong == 0))
        print(
            f"{cell.name}: {found[-1]['looks'][-1]['value']['gain']['mean']:+.3f}, {found[-1]['cpu_seconds']:.0f} s", flush=True
        )
    said = {"machine": describe_machine(), "plan": asdict(plan), "left": left, "cells": found}
    results.write(RESULTS / "voters.json", said, indent=1)
    if has_curve(said):
        draw(said, IMAGES / "voters.png")
    (DOCS / "voters.md").write_text(page(said))
    print(page(said))


if __name__ == "__main__":
    main()
