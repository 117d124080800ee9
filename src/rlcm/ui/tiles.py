"""What a run is judged by, at a glance: a tile each with a number, where it began, and a verdict of `advice`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rlcm.report.run import Run
from rlcm.report.values import finite, half_of_change, mapping, mean_and_half
from rlcm.report.words import DIVERSITY, asked, decimals, signed_change, with_unit, written
from rlcm.ui.advice import LATEST, Advice, Topic, Verdict, percent, verdict_on

Ends = tuple[float, float, float]
"""Before training, now, and the half-width of the 95 % interval of the change."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One number of a run."""

    label: str
    value: str
    note: str = ""
    """Where it began, or what it is measured against."""
    verdict: Verdict = "ok"
    change: str = ""
    """Said only where it is larger than its interval."""


def tiles(run: Run, advice: Sequence[Advice]) -> list[Tile]:
    """Return a run's tiles, those that can be measured; none before there is a number."""
    found = [*_reward(run, advice), *_held_out(run, advice), *_judge(run, advice)]
    if len(run.evaluations) > 1:
        found += _pictures(mapping(run.evaluations[0].get("guard")), mapping(run.outcome.get("guard")), advice)
    return found + _rounds(run, advice)


def ends_of(run: Run) -> Ends | None:
    """Return the run's reward as people read it, before training and now; None for fewer than two evaluations."""
    if len(run.evaluations) < 2:
        return None
    first, last = run.metric.interval(run.evaluations[0]), run.metric.interval(run.outcome)
    if first is None or last is None:
        return None
    return first[0], last[0], half_of_change(run.outcome, run.metric.name, first[1], last[1])


def clear_change(ends: Ends) -> str:
    """Return a change in words where it is larger than its interval, else nothing."""
    before, after, half = ends
    return signed_change(before, after) if abs(after - before) > half else ""


def _reward(run: Run, advice: Sequence[Advice]) -> list[Tile]:
    metric, ends = run.metric, ends_of(run)
    label = metric.label[:1].upper() + metric.label[1:]
    if ends is None:
        values = [value for row in run.rounds[-LATEST:] if (value := metric.of_round(row)) is not None]
        if not values:
            return []
        return [Tile(label, with_unit(fmean(values), metric.unit), f"mean of the last {len(values)} rounds", "watch")]
    before, after, half = ends
    digits, change = decimals(before, after), clear_change(ends)
    note = f"{written(before, digits)} before training"
    if not change:
        note += f"; within its interval, ± {written(half, digits)}"
    better = change and (after < before) == metric.lower_is_better
    verdict: Verdict = "ok" if better else "bad" if change else "watch"
    if verdict_on(advice, "reward") == "bad":
        verdict = "bad"
    return [Tile(label, with_unit(after, metric.unit, digits), note, verdict, change)]


def _held_out(run: Run, advice: Sequence[Advice]) -> list[Tile]:
    if len(run.evaluations) < 2:
        return []
    found = []
    for label, value in mapping(run.outcome.get("held_out")).items():
        before, after = mean_and_half(mapping(run.evaluations[0].get("held_out")).get(label)), mean_and_half(value)
        if before[0] is None or after[0] is None:
            continue
        ends = (before[0], after[0], half_of_change(run.outcome, f"held_out.{label}", before[1], after[1]))
        digits = decimals(before[0], after[0])
        falls = verdict_on([one for one in advice if one.title.startswith(f"{label} falls")], "held out")
        note = f"{written(before[0], digits)} before training; held out"
        found.append(Tile(str(label).replace("_", " "), written(after[0], digits), note, falls, clear_change(ends)))
    return found


def _judge(run: Run, advice: Sequence[Advice]) -> list[Tile]:
    judged = mapping(run.outcome.get("judge"))
    question = next(iter(judged), None)
    if question is None or len(run.evaluations) < 2:
        return []
    before = mean_and_half(mapping(run.evaluations[0].get("judge")).get(question))
    after = mean_and_half(judged[question])
    if before[0] is None or after[0] is None:
        return []
    points = f"{'+' if after[0] > before[0] else ''}{written(100 * (after[0] - before[0]), 1)} points"
    half = half_of_change(run.outcome, f"judge.{question}", before[1], after[1])
    change = points if abs(after[0] - before[0]) > half else ""
    label = asked(str(question))
    note = f"{percent(before[0])} before training, by the held-out judge"
    return [Tile(label[:1].upper() + label[1:], percent(after[0]), note, verdict_on(advice, "judge"), change)]


def _pictures(before: Mapping[str, Any], after: Mapping[str, Any], advice: Sequence[Advice]) -> list[Tile]:
    found = []
    diversity = next((key for key in DIVERSITY if finite(before.get(key)) and finite(after.get(key)) is not None), "")
    measured: tuple[tuple[str, str, Topic], ...] = (
        (diversity, "Diversity", "diversity"), ("high_frequency", "Fine detail", "detail")
    )  # fmt: skip
    for key, label, topic in measured:
        old, new = finite(before.get(key)), finite(after.get(key))
        if old and new is not None:
            found.append(Tile(label, percent(new / old), "of what it was before training", verdict_on(advice, topic)))
    old, new = finite(before.get("saturated")), finite(after.get("saturated"))
    if old is not None and new is not None:
        note = f"of all pixels, {percent(old)} before training"
        found.append(Tile("Black or white", percent(new), note, verdict_on(advice, "extremes")))
    return found


def _rounds(run: Run, advice: Sequence[Advice]) -> list[Tile]:
    latest = run.rounds[-LATEST:]
    if not latest:
        return []

    def mean(key: str) -> float | None:
        values = [value for row in latest if (value := finite(row.get(key))) is not None]
        return fmean(values) if values else None

    found = []
    kl, target = mean("kl"), finite(mapping(run.config.get("algorithm")).get("kl_target"))
    if kl is not None:
        note = f"from the base model; target {written(target)}" if target else "KL divergence from the base model"
        found.append(Tile("Distance", written(kl), note, verdict_on(advice, "leash")))
    idle, lost = mean("idle_groups"), sum(finite(row.get("dropped_images")) or 0.0 for row in latest)
    verdict = verdict_on(advice, "learning")
    pictures = f"{lost:,.0f} pictures not scored" if lost else "all pictures scored"
    if idle is not None:
        found.append(Tile("Groups that teach", percent(1 - idle), f"of the last {len(latest)} rounds; {pictures}", verdict))
    elif verdict != "ok" or lost:
        found.append(Tile("Not scored", f"{lost:,.0f}", f"pictures of the last {len(latest)} rounds", verdict))
    return found
