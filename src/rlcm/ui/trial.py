"""What a training costs, measured: one round of it in a process of its own, whose run is thrown away."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlcm.report import read_run
from rlcm.report.values import finite
from rlcm.report.words import byte_size, duration
from rlcm.runs.serialization import write_bytes
from rlcm.training.config import TrainConfig

LONGEST = 120.0
"""Seconds after which a trial is given up."""
IMAGES = 8
"""Pictures of its evaluations."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a training takes on this machine."""

    seconds: float
    """Of all rounds and evaluations, as fast as the trial's."""
    memory: int
    """Bytes of main memory at the trial's peak."""

    def words(self) -> str:
        """Return it in a sentence."""
        return (
            f"About {duration(self.seconds)} and {byte_size(self.memory)} of main memory here, by a round that was just tried."
        )


def try_round(config: TrainConfig, command: Sequence[str], surroundings: dict[str, str]) -> Cost | None:
    """Return what a training would cost; None where its first round failed, or took too long to wait for.

    Args:
        config: of the training.
        command: what `rlcm` is called as.
        surroundings: environment variables of the process.
    """
    with tempfile.TemporaryDirectory(prefix="rlcm-trial-") as folder:
        evaluation = config.evaluation
        fewer = {name: min(IMAGES, getattr(evaluation, name)) for name in ("images", "diversity_images")}
        shorter = {
            "name": "trial",
            "output": folder,
            "run": config.run.model_copy(update={"rounds": 1, "time_limit_minutes": None, "tracker": "none"}),
            "evaluation": evaluation.model_copy(update=fewer | {"every": 0}),
        }
        file = Path(folder, "trial.yaml")
        write_bytes(file, config.model_copy(update=shorter).dump().encode())
        peak = _run_to_its_end([*command, "train", str(file)], surroundings)
        if peak is None:
            return None
        run = read_run(Path(folder, "trial"))
    a_round = finite(run.rounds[-1].get("seconds")) if run.rounds else None
    speed = finite(run.outcome.get("images_per_second"))
    if a_round is None or not speed:
        return None
    rounds = config.run.rounds
    learning = rounds * a_round
    if config.run.time_limit_minutes is not None:
        learning = min(learning, 60 * config.run.time_limit_minutes)
    return Cost(learning + config.evaluation.times(rounds) * config.evaluation.drawn / speed, peak)


def _run_to_its_end(command: Sequence[str], surroundings: dict[str, str]) -> int | None:
    """Run a command and return the bytes of memory at its peak; None where it fails or takes too long."""
    silent = subprocess.DEVNULL
    child = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, env=surroundings)
    end, peak = time.monotonic() + LONGEST, 0
    try:
        while child.poll() is None and time.monotonic() < end:
            try:
                peak = max(peak, psutil.Process(child.pid).memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.05)
        return peak if child.wait(1) == 0 else None
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
