"""How a run stands: being trained, finished, stopped, failed; and what its card says."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from rlcm.report.run import WEIGHTS, Run
from rlcm.report.values import finite, mapping
from rlcm.report.words import counted, decimals, duration, with_unit, written
from rlcm.training.run_settings import progress
from rlcm.ui.advice import advice_on
from rlcm.ui.jobs import Job
from rlcm.ui.tiles import clear_change, ends_of

State = Literal["starting", "training", "stopping", "elsewhere", "finished", "stopped", "failed"]

WORDS: dict[State, str] = {
    "starting": "starting",
    "training": "training",
    "stopping": "stopping after this round",
    "elsewhere": "training, started elsewhere",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "ended with an error",
}
STOPPING = "A round that has begun is finished, and everything is saved first. Before the first round there is nothing to save."
LIVE: tuple[State, ...] = ("starting", "training", "stopping", "elsewhere")
SILENCE = 30.0
"""Seconds without a new round after which a run that this page has not started counts as stopped, at the least."""
SPARK = 60
"""Points of a card's curve."""


@dataclass(frozen=True, slots=True)
class Card:
    """A run in the list."""

    name: str
    state: State
    words: str
    progress: float
    """Share of the run that is over: of its rounds or of its time, whichever is the larger."""
    rounds: str
    result: str
    """What became of the reward."""
    curve: str
    """Points of the curve in a box of 100 x 24, as SVG writes them; nothing for fewer than two."""
    warnings: int
    failure: str = ""
    """With what its training ended, where it failed."""


def state_of(run: Run, job: Job, failure: str = "") -> State:
    """Return how a run stands.

    Args:
        failure: why its training ended badly, if it did.
    """
    if job.alive:
        return "stopping" if job.stopping else "training"
    if (run.path / WEIGHTS).is_file() and not run.goes_on:
        return "finished"
    if _is_fresh(run, job.ended):
        return "elsewhere"
    return "failed" if failure else "stopped"


def planned_rounds(run: Run) -> int | None:
    """Return how many rounds a run was asked for."""
    planned = finite(mapping(run.config.get("run")).get("rounds"))
    return None if planned is None else int(planned)


def progress_of(run: Run) -> float:
    """Return the share of a run that is over, 0 .. 1; 0 where its configuration plans no end."""
    minutes = finite(mapping(run.config.get("run")).get("time_limit_minutes"))
    return progress(run.last_round, run.seconds or 0.0, planned_rounds(run), minutes)


def card(name: str, run: Run, job: Job, failure: str = "") -> Card:
    """Return a run's card; `failure` as for `state_of`."""
    state, planned, done = state_of(run, job, failure), planned_rounds(run), run.last_round
    return Card(
        name,
        state,
        WORDS[state],
        progress_of(run),
        standing(run)
        if state in LIVE
        else f"{done:.0f} of {counted(planned, 'round')}"
        if planned and planned >= done
        else counted(done, "round"),
        result(run),
        sparkline([value for row in run.rounds if (value := run.metric.of_round(row)) is not None]),
        sum(one.kind == "warning" for one in advice_on(run)),
        failure if state == "failed" else "",
    )


def waiting_card(name: str) -> Card:
    """Return the card of a training that has written nothing yet."""
    return Card(name, "starting", WORDS["starting"], 0.0, "loading the model", "", "", 0)


def stopped_card(name: str) -> Card:
    """Return the card of a training that was stopped before there was a run."""
    return Card(name, "stopped", WORDS["stopped"], 0.0, "before its first round", "", "", 0)


def failed_card(name: str, failure: str) -> Card:
    """Return the card of a training that ended before there was a run."""
    return Card(name, "failed", WORDS["failed"], 0.0, "before its first round", "", "", 0, failure)


def result(run: Run) -> str:
    """Return what became of the reward, in a line; a change only where it is larger than its interval."""
    metric, ends = run.metric, ends_of(run)
    if ends is None:
        latest = next((value for row in reversed(run.rounds) if (value := metric.of_round(row)) is not None), None)
        return "" if latest is None else f"{metric.label} {with_unit(latest, metric.unit)}"
    before, after, _ = ends
    digits = decimals(before, after)
    change = clear_change(ends) or "no clear change"
    return f"{metric.label} {written(before, digits)} → {with_unit(after, metric.unit, digits)} ({change})"


def standing(run: Run) -> str:
    """Return how far a training is, such as "Round 12 of 40, 31 s left"."""
    planned, done, left = planned_rounds(run), run.last_round, time_left(run)
    far = f"Round {done:,.0f} of {planned:,}" if planned and planned >= done else f"Round {done:,.0f}"
    return f"{far}, {left}" if left else far


def time_left(run: Run) -> str:
    """Return how long the rest of the run will take, by what is over; nothing where that is not known."""
    done, seconds = progress_of(run), run.seconds
    return f"{duration((1 - done) * seconds / done)} left" if seconds and 0 < done < 1 else ""


def sparkline(values: list[float]) -> str:
    """Return values as the points of a line in a box of 100 x 24, the highest at its top."""
    if len(values) < 2:
        return ""
    step = max(1, -(-len(values) // SPARK))
    means = [sum(part) / len(part) for i in range(0, len(values), step) if (part := values[i : i + step])]
    if len(means) < 2:
        return ""
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return " ".join(f"{100 * i / (len(means) - 1):.1f},{22 - 20 * (value - low) / span:.1f}" for i, value in enumerate(means))


def _is_fresh(run: Run, ended: float | None) -> bool:
    """Return whether the last round is so recent that the next may be under way, in a process that is not this page's.

    Args:
        ended: when this page's own training of the run ended; its rounds do not count.
    """
    try:
        changed = (run.path / "metrics.jsonl").stat().st_mtime
    except OSError:
        return False
    if ended is not None and changed <= ended + 1.0:
        return False
    latest = [(finite(row.get("seconds")) or 0.0) for row in run.rounds[-2:]]
    a_round = latest[-1] - latest[0] if len(latest) == 2 else 0.0
    return time.time() - changed < max(SILENCE, 4 * a_round)
