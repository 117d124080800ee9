"""How long a run goes on: the settings, its clocks, and how far it has come."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import Field

from rlcm.runs.trackers import TrackerName
from rlcm.settings import Settings

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What counts the seconds of a run, by `run.clock`."""


class RunSettings(Settings):
    """How long a run goes on, what it keeps, and what fits into memory."""

    rounds: int = Field(default=75, ge=1, le=1_000_000_000)
    """Rounds of sampling and learning."""
    time_limit_minutes: float | None = Field(default=None, gt=0, le=100_000_000)
    """Stop, as after the last round, once this much time has gone into sampling and learning. What rises or falls over the run
    follows the rounds or the time, whichever is nearer to its end; so two runs of one seed may end elsewhere, since no clock ticks
    alike twice."""
    clock: Literal["wall", "cpu"] = "wall"
    """What `seconds` and the time limit count: the time that passes, or the computing time of the process over all its threads,
    which other programs on the machine hardly lengthen. `cpu` is for comparing methods on one CPU, each with one thread."""
    micro_batch_size: int = Field(default=64, ge=1, le=1_000_000)
    """States in one forward and backward pass. Smaller needs less memory; the result is the same."""
    save_every: int = Field(default=20, ge=0, le=1_000_000_000)
    """Rounds between checkpoints; 0 writes one at the end only."""
    keep_last: int = Field(default=2, ge=1, le=1_000_000_000)
    """Checkpoints kept."""
    tracker: TrackerName = "tensorboard"
    """Where metrics go besides metrics.jsonl: `tensorboard`, `wandb`, `trackio`, `swanlab` or `none`. One that fails never stops
    a run."""
    tracker_project: str = Field(default="rlcm", min_length=1)
    """The project under which `wandb`, `trackio` and `swanlab` file the run."""
    sharding: Literal["none", "fsdp2"] = "none"
    """`fsdp2`: the frozen weights of the denoiser are shared out between the processes, for networks that are too large for
    one; `none`: every process holds all of them. The adapter is always whole. Results are the same."""
    timeout_seconds: float = Field(default=600, gt=0, le=100_000_000)
    """How long a process of several waits for the others before the run ends with an error."""

    def progress(self, rounds: int, seconds: float) -> float:
        """Return the share of the run that is over, 0 .. 1, after so many rounds and seconds; see `progress`."""
        return progress(rounds, seconds, self.rounds, self.time_limit_minutes)


def progress(rounds: float, seconds: float, planned: float | None, minutes: float | None) -> float:
    """Return the share of a run that is over, 0 .. 1: of its rounds or of its time, whichever is the larger.

    Args:
        rounds: done so far.
        seconds: that these took, by the clock of the run's time limit.
        planned: rounds of the whole run; None where that is not known.
        minutes: of the whole run; None where it has no time limit.
    """
    shares = (rounds / planned if planned else 0.0, seconds / (60 * minutes) if minutes else 0.0)
    return min(1.0, max(0.0, *shares))
