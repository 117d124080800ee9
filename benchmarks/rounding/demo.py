"""The default run on JPEG sizes, in fp32 and with every output of its network rounded as an accelerator in half precision does."""

from __future__ import annotations

import json
import statistics
import tempfile
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.shared.pages import table
from benchmarks.shared.simulated_accelerator import simulated
from rlcm import Trainer
from rlcm.training.config import load_config

PRECISIONS = ("fp32", "bf16")
SEEDS = (0, 1, 2)
TASK = ("rewards=[jpeg_compressibility]", "prompts=world-objects")
"""What is learnt: sizes in kB, whose changes are fine enough to tell two roundings apart."""


def train(precision: str | None, seed: int, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train the default towards smaller JPEG files with a seed and return its final figures.

    Args:
        precision: which the network's output is rounded to, and the old means are then those of the computation that learns;
            None and fp32 leave it as the device computes it.
        changes: of the configuration, as KEY=VALUE.
    """
    half = precision not in (None, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        also = ("algorithm.old_policy=learning",) if half else ()
        own = (f"output={folder}", "name=demo", f"seed={seed}", "run.tracker=none")
        config = load_config(None, (*own, *TASK, *also, *changes))
        trainer = Trainer(config)
        with simulated(trainer.parts.policy.denoiser, str(precision)) if half else nullcontext():
            run = trainer.train()
        found = json.loads((run / "eval.json").read_text())["evaluations"]
        rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before, after = found[0], found[-1]
    return {
        "before_kb": -before["reward"]["mean"],
        "after_kb": -after["reward"]["mean"],
        "judge": after["judge"]["right"]["mean"],
        "ratio_deviation_max": max(row["ratio_deviation_max"] for row in rounds),
        "mismatch_kl": statistics.fmean(row["mismatch_kl"] for row in rounds),
        "mismatch_ratio_max": max(row["mismatch_ratio_max"] for row in rounds),
        "rounds": len(rounds),
        "seconds": after["seconds"],
        "threads": torch.get_num_threads(),
    }


def verdict(runs: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return means and spreads of the final size, and whether the mean in half precision lies within the seeds of fp32."""
    sizes = {name: [run["after_kb"] for run in of.values()] for name, of in runs.items()}
    full, half = sizes["fp32"], sizes["bf16"]
    mean = statistics.fmean(half)
    return {
        "fp32": {"mean": statistics.fmean(full), "least": min(full), "most": max(full)},
        "bf16": {"mean": mean, "least": min(half), "most": max(half)},
        "within": min(full) <= mean <= max(full),
    }


def words(runs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the verdict as a sentence."""
    found = verdict(runs)
    place = "within" if found["within"] else "outside"
    threads = sorted({run["threads"] for of in runs.values() for run in of.values()})
    return (
        f"In the end the files have {found['bf16']['mean']:.3f} kB on average in simulated bf16, which is {place} the span of the "
        f"seeds in fp32: {found['fp32']['least']:.3f} to {found['fp32']['most']:.3f}, {found['fp32']['mean']:.3f} on average. "
        f"Single seeds in bf16 have {found['bf16']['least']:.3f} to {found['bf16']['most']:.3f}. "
        f"All runs on {' and '.join(map(str, threads))} thread{'s' * (threads != [1])} of the same machine."
    )


def complete(runs: dict[str, dict[str, Any]], seeds: tuple[int, ...] = SEEDS) -> bool:
    """Return whether every seed is there in both precisions."""
    return all(str(seed) in runs.get(precision, {}) for precision in PRECISIONS for seed in seeds)


def table_of(runs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the runs as a table."""
    head = [
        "network's output",
        "seed",
        "kB before",
        "kB after",
        "judge after",
        "ratio off 1 at most",
        "mismatch, nats",
        "its ratio off 1",
    ]
    rows = [
        [
            precision,
            seed,
            f"{run['before_kb']:.3f}",
            f"{run['after_kb']:.3f}",
            # Of the former built-in model, whose judge was asked for the animal.
            f"{run['judge'] if 'judge' in run else run['judge_animal']:.1%}",
            f"{run['ratio_deviation_max']:.1g}",
            f"{run['mismatch_kl']:.1e}" if run["mismatch_kl"] else "0",
            f"{run['mismatch_ratio_max']:.1e}" if run["mismatch_ratio_max"] else "0",
        ]
        for precision, of in runs.items()
        for seed, run in sorted(of.items())
    ]
    return table(head, rows)
