"""One run of the study, in a process of its own: train until the budget is used, look at fixed moments, and write one file.

    python -m benchmarks.algorithms.measure TASK METHOD SEED --budget 45 --results benchmarks/results/algorithms

The clock is this process's CPU time, all threads together, and only while the trainer is at work: two runs that share a
machine then get the same share of work, whatever they wait for. Wall-clock time is recorded beside it.

A reward can be had by breaking the pictures. The result of a run is therefore its best look at which the held-out judge still
finds at least 95 % as many pictures right as before training, and those weights are what is sampled in other numbers of steps. A
run whose judge falls below half twice in a row is over.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.algorithms.design import chosen, file_of_try, values_of_try
from benchmarks.algorithms.methods import MANY_STEP, METHODS, TASKS, UNTRAINED, values_of
from benchmarks.shared.command import parser
from benchmarks.shared.results import rounded
from rlcm import TrainConfig, Trainer
from rlcm.builtin import model_path
from rlcm.builtin.detector import JudgeDetector
from rlcm.builtin.graded import graded
from rlcm.builtin.judging import fitted
from rlcm.builtin.vocabulary import known
from rlcm.pipelines import PipelineDenoiser, make_denoiser
from rlcm.processes.machine import describe_machine
from rlcm.training.config import parse_settings

MOMENTS = (0.02, 0.05, 0.1, 0.15, 0.22, 0.32, 0.45, 0.6, 0.8, 1.0)
"""Shares of the budget at which the model is looked at, and before it; close together at first, where fast methods win."""
FINE_MOMENTS = (0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.15, 0.22, 0.32, 0.45, 0.6, 0.8, 1.0)
"""The same where some methods are over in a tenth of the budget: a look that is too late sees broken pictures only."""
STEPS = (1, 2, 4, 8)
"""Denoising steps with which the trained model is looked at in the end."""
SOUND, BROKEN = 0.95, 0.5
"""Shares of the judge's verdict before training: above the first a model counts, below the second twice in a row a run ends."""
CURVE_POINTS = 100
"""Rounds beyond this many are averaged with their neighbours."""


@dataclass(frozen=True, slots=True)
class RunKey:
    """Which run."""

    task: str
    method: str
    seed: int
    number: int | None = None
    """Of a try, if it is one of a search."""

    def file(self, results: Path) -> Path:
        """Return where its result lies."""
        if self.number is not None:
            return file_of_try(results, self.task, self.method, self.number)
        return results / f"{self.task}-{self.method}-{self.seed}.json"

    def values(self, results: Path) -> dict[str, Any]:
        """Return its configuration as nested values: with what the method's search chose, or as one of its tries."""
        if self.number is None:
            return values_of(self.task, self.method, self.seed, chosen(results, self.task, self.method))
        return values_of(self.task, self.method, self.seed, values_of_try(self.task, self.method, self.number))

    @property
    def moments(self) -> tuple[float, ...]:
        """When the model is looked at."""
        if self.number is not None:
            return (0.5, 1.0)
        few = self.method in (UNTRAINED, *MANY_STEP) or not TASKS[self.task].finely_looked_at
        return MOMENTS if few else FINE_MOMENTS

    @property
    def steps(self) -> tuple[int, ...]:
        """Other numbers of steps that the model is looked at with in the end; a many-step model has none."""
        return () if self.method in MANY_STEP else STEPS

    def budget(self, common: float) -> float:
        """Return its CPU seconds of training, of which most methods get `common` on most tasks."""
        return float(common) * TASKS[self.task].times * (METHODS[self.method].times if self.method in METHODS else 1)

    def hash(self, budget: float, results: Path) -> str:
        """Return a digest of all that the result depends on, at a common budget."""
        looks = [self.moments, self.steps, SOUND, BROKEN]
        values = {"config": self.values(results), "budget": self.budget(budget), "looks": looks}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def done(self, results: Path, budget: float) -> bool:
        """Say whether the result is there and belongs to the present configuration."""
        try:
            return json.loads(self.file(results).read_text())["hash"] == self.hash(budget, results)
        except (OSError, ValueError, KeyError, TypeError):
            return False


def measure(key: RunKey, budget: float, results: Path) -> dict[str, Any]:
    """Run, and return the result.

    Args:
        budget: CPU seconds of training that most methods get.
        results: where the tries of a search lie.
    """
    torch.set_num_threads(1)
    own = key.budget(budget)
    config = parse_settings(TrainConfig, key.values(results))
    trainer = Trainer(config)
    judge = JudgeDetector.load(model_path("judge"))
    clock = {"cpu": 0.0, "wall": 0.0}
    curve: list[dict[str, float]] = []

    def look(steps: int | None = None) -> dict[str, Any]:
        evaluator, policy = trainer.parts.evaluator, trainer.parts.policy
        if steps is not None:
            # The same fixed set and the same weights under another sampler.
            sampler = config.sampler.model_copy(update={"steps": steps, "final_std": 0.0})
            evaluator, policy = copy.copy(evaluator), copy.copy(policy)
            assert isinstance(policy.denoiser, PipelineDenoiser)
            policy.denoiser = make_denoiser(policy.denoiser.pipeline, sampler, config.model)
            evaluator.table = policy.denoiser.table
        found = evaluator(policy)
        summary = found.summary()
        asked = [entry for prompt in found.prompts if (entry := known(prompt, {})) is not None]
        with torch.no_grad():
            confidence = graded(judge(fitted(found.images)), asked).mean().item()
        return {
            "reward": summary["reward"]["mean"],
            "reward_ci95": summary["reward"]["ci95"],
            "judge": summary["judge"]["right"]["mean"],
            "judge_confidence": confidence,
            "guard": summary["guard"],
            **{name: summary[name] for name in ("held_out",) if name in summary},
        }

    def now() -> dict[str, float]:
        return {**clock, "round": trainer.round_number, **{k: v for k, v in trainer.counters.items() if k != "seconds"}}

    def weights() -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in trainer.parts.policy.named_parameters.items()}

    evaluations = [{**now(), **look()}]
    best, kept = evaluations[0], weights()
    healthy = best["judge"]
    moments = [] if key.method == UNTRAINED else [share * own for share in key.moments]
    while moments:
        cpu, wall = time.process_time(), time.perf_counter()
        metrics = trainer.round()
        clock["cpu"] += time.process_time() - cpu
        clock["wall"] += time.perf_counter() - wall
        curve.append({**now(), **{k: metrics[k] for k in ("reward", "reward_std", "kl", "grad_norm") if k in metrics}})
        if clock["cpu"] >= moments[0]:
            evaluations.append({**now(), **look()})
            moments = [moment for moment in moments if moment > clock["cpu"]]
            if evaluations[-1]["judge"] >= SOUND * healthy and evaluations[-1]["reward"] > best["reward"]:
                best, kept = evaluations[-1], weights()
            if all(e["judge"] < BROKEN * healthy for e in evaluations[-2:]):
                break
    trainer.parts.policy.load(kept)
    return {
        "task": key.task,
        "method": key.method,
        "seed": key.seed,
        "tuned": chosen(results, key.task, key.method) if key.number is None else None,
        "hash": key.hash(budget, results),
        "budget": own,
        "machine": describe_machine(),
        "totals": now(),
        "curve": _thinned(curve),
        "best": best,
        "evaluations": evaluations,
        "steps": {} if key.number is not None else {str(steps): look(steps=steps) for steps in key.steps},
        "config": config.model_dump(mode="json"),
    }


def write(file: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all, one row a line."""
    lines = []
    for name, value in rounded(result).items():
        if isinstance(value, list):
            rows = ",\n  ".join(json.dumps(row) for row in value)
            lines.append(f"{json.dumps(name)}: [\n  {rows}\n ]" if value else f"{json.dumps(name)}: []")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text("{\n " + ",\n ".join(lines) + "\n}\n")
    unfinished.replace(file)


def _thinned(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return at most CURVE_POINTS rows: of neighbours the last one's clock and counters, and the mean of what was measured."""
    size = -(-len(rows) // CURVE_POINTS)
    counted = ("cpu", "wall", "round", "reward_queries", "network_calls")
    thinned = []
    for start in range(0, len(rows), size or 1):
        part = rows[start : start + size]
        means = {k: sum(row[k] for row in part) / len(part) for k in part[-1] if k not in counted and all(k in r for r in part)}
        thinned.append({k: part[-1][k] for k in counted} | means)
    return thinned


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one run."""
    options = parser(__doc__)
    options.add_argument("task")
    options.add_argument("method")
    options.add_argument("seed", type=int)
    options.add_argument("--budget", type=float, required=True)
    options.add_argument("--results", type=Path, required=True)
    options.add_argument("--try", type=int, default=None, dest="number", help="of a search")
    given = options.parse_args(arguments)
    key = RunKey(given.task, given.method, given.seed, given.number)
    write(key.file(given.results), measure(key, given.budget, given.results))


if __name__ == "__main__":
    main()
