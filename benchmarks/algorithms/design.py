"""What every method is searched over: eight settings, the same for all, on prompts and a seed that no result has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.algorithms.methods import METHODS, TASKS, half
from benchmarks.shared import results as files
from rlcm.settings import Changes, merge

SHARE = 0.2
"""Of a result's budget that a try gets."""
SEED = 1000
"""Of all tries; no result has it."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
IMAGES = (32, 64)
UPDATES = (1, 2)
LEASHES = (0.0, 0.1)
"""Weights of a plain penalty on the divergence. A target for it, and a pace that follows one, would change the rate as well."""
DESIGN = ((0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 0, 1), (1, 1, 1, 0), (2, 0, 1, 0), (2, 1, 0, 1), (3, 0, 1, 1), (3, 1, 0, 0))
"""Eight of the 32 combinations of rate, images, updates and leash, as an orthogonal array: of any two of them, every pair of values
comes equally often."""


def tries_of(method: str) -> list[Changes]:
    """Return the eight tries of a method as changes of its configuration; some methods take one update a round in all of them."""
    found: list[Changes] = []
    for rate, images, updates, leash in DESIGN:
        count = 1 if METHODS[method].one_update else UPDATES[updates]
        weight = LEASHES[leash]
        algorithm: dict[str, Any] = {"minibatches": count, "kl_coefficient": weight}
        optimizer: dict[str, Any] = {"lr": RATES[rate]}
        if weight:
            algorithm["kl_target"], optimizer["max_pace"] = None, 1.0
        found.append({"optimizer": optimizer, "rollout": {"batch_size": IMAGES[images]}, "algorithm": algorithm})
    return found


def file_of_try(results: Path, task: str, method: str, number: int) -> Path:
    """Return where what came of a try lies."""
    return results / "search" / f"{task}-{method}-{number}.json"


def values_of_try(task: str, method: str, number: int) -> Changes:
    """Return what a try changes of its method's configuration: it trains and is looked at on prompts that no result trains on."""
    looks = merge({"seed": SEED, "diversity_images": 0}, TASKS[task].looked_at_in_tries)
    own = {"prompts": list(half(TASKS[task].prompts, for_search=True)), "evaluation": looks}
    return merge(tries_of(method)[number], own)


def chosen(results: Path, task: str, method: str) -> Changes:
    """Return the settings that a method's tries chose; nothing where it was not searched, or some tries are missing."""
    runs = [files.read_if_there(file_of_try(results, task, method, number)) for number in range(len(DESIGN))]
    if not all(runs):
        return {}
    best = max(range(len(runs)), key=lambda number: float(runs[number]["best"]["reward"]))
    return tries_of(method)[best]
