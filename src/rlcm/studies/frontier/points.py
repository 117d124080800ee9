"""From the evaluations of runs to the points of a frontier, and which of them no other point beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rlcm.errors import UsageError
from rlcm.report.metric import Metric
from rlcm.report.run import Run
from rlcm.report.values import finite, mapping, mean_and_half
from rlcm.report.words import DIVERSITY, titled
from rlcm.studies.compare.methods import OTHER_SETS, Method, measured, read_methods, reward_sign, set_of
from rlcm.studies.frontier.strengths import read_strengths
from rlcm.studies.intervals import mean_over_seeds

MEASURES = ("diversity_judge", "diversity_clip", "diversity", "vendi_judge", "vendi_clip")
"""Of diversity, the one that a table goes by first."""
KEPT = (0.95, 0.8, 0.6)
"""Shares of the base model's diversity at which methods are compared."""
OF_GAIN = 0.95
"""Share of the largest gain in reward at which their diversity is."""


@dataclass(slots=True)
class Point:
    """One evaluation of a method, the mean over its seeds."""

    about: str
    """Which one it is: the base model, a round or a strength."""
    reward: float
    """Higher is better."""
    half: float | None
    """Half-width of the 95 % interval of the reward: over seeds, of a single seed over images."""
    kl: float | None
    """From the base model; None where a seed has not measured it."""
    shares: dict[str, float]
    """Of the base model's diversity, by measure; those that all seeds have."""


@dataclass(slots=True)
class Track:
    """The points of one method, in order."""

    of: str
    """The method's name."""
    points: list[Point]
    seeds: list[Any]
    runs: list[str]
    settings: dict[str, Any]
    free: bool = False
    """Whether they are strengths of what was learnt, which cost no training."""

    @property
    def name(self) -> str:
        """The name of the line."""
        return f"{self.of}, strength" if self.free else self.of


@dataclass(slots=True)
class Frontier:
    """All tracks, and how they are measured."""

    tracks: list[Track]
    metric: Metric
    measure: str | None
    """The measure of diversity that the table goes by; None where nothing was measured."""
    others: list[str]
    """Further measures."""
    kl: str | None
    """evaluation: nats of whole paths, by the evaluations; training: as metrics.jsonl has it; None: not known of all."""
    warnings: list[str]
    best: dict[str, Any] = field(default_factory=dict)


def frontier(paths: Sequence[Path], reward: str | None = None, *, strengths: bool = False) -> Frontier:
    """Return the frontier of runs: of every method its evaluations, from the base model's on.

    Runs that differ in their seed only are one method; the i-th evaluations of its seeds are averaged. What cannot be compared is
    left out and named: runs of another fixed set, runs without an evaluation of the base model, measures that not all runs have.

    Args:
        paths: run folders.
        reward: label of the reward, as for `read_methods`.
        strengths: whether what `measure_strengths` left in the runs is shown, too.

    Raises:
        RunDirectoryError: if a path does not exist.
        UsageError: if the runs have no reward in common, were not evaluated, or have neither diversity nor divergence.
    """
    methods, metric, warnings = read_methods(paths, reward)
    warnings = [text for text in warnings if text != OTHER_SETS]
    reference = methods[0].runs[0]
    for method in methods:
        for run in list(method.runs):
            if set_of(run) != set_of(reference):
                warnings.append(
                    f"{run.path} was evaluated on another set (evaluation.images, evaluation.seed or prompts) than {reference.path}, "
                    "and is left out."
                )
            elif finite(method.curves[method.runs.index(run)].evaluations[0].get("round")) != 0:
                warnings.append(f"{run.path} has no evaluation of the base model (round 0), and is left out.")
            else:
                continue
            place = method.runs.index(run)
            del method.runs[place], method.curves[place]
    methods = [method for method in methods if method.runs]
    if not methods:
        raise UsageError(f"there is no frontier to draw: {' '.join(warnings)}")
    runs = [(run, curve.evaluations) for method in methods for run, curve in zip(method.runs, method.curves, strict=True)]
    measure = _measure(runs, warnings)
    kl = _kind_of_kl(runs, warnings)
    if measure is None and kl is None:
        raise UsageError(
            f"there is no frontier to draw: of these runs neither diversity nor the KL divergence to the base model is known. "
            f"{' '.join(warnings)}"
        )
    every = [mapping(e.get("guard")) for _, evaluations in runs for e in evaluations]
    others = [key for key in MEASURES if key != measure and all(finite(guard.get(key)) is not None for guard in every)]
    chosen = [measure, *others] if measure else others
    label, sign = _label(methods, metric)
    tracks = []
    for method in methods:
        tracks.append(_track(method, kl, chosen))
        if strengths:
            tracks += _free(method, label, sign, chosen, kl, warnings)
    found = Frontier(tracks, metric, measure, others, kl, warnings)
    top = max((point for track in tracks for point in track.points), key=lambda point: point.reward)
    base = tracks[0].points[0].reward
    found.best = {"reward": top.reward, "base": base, "target": base + OF_GAIN * (top.reward - base)}
    return found


def share_of(measure: str, value: float, base: float) -> float:
    """Return what is left of the base model's diversity: 0 where all pictures of a prompt are alike.

    d / d_base of a distance,   (V - 1) / (V_base - 1) of a Vendi score, which is 1 where all are alike
    """
    none = 1.0 if measure.startswith("vendi") else 0.0
    return (value - none) / (base - none)


def not_dominated(places: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of points (x, y) for which no other is as high in both and higher in one."""
    return [
        i for i, (x, y) in enumerate(places) if not any(a >= x and b >= y and (a > x or b > y) for a, b in places)
    ]  # fmt: skip


def best_at(points: Sequence[Point], measure: str, share: float) -> Point | None:
    """Return the point of the highest reward that keeps a share of the base model's diversity; None if there is none."""
    kept = [point for point in points if measure in point.shares and point.shares[measure] >= share - 1e-9]
    return max(kept, key=lambda point: point.reward, default=None)


def most_diverse_at(points: Sequence[Point], measure: str, reward: float) -> Point | None:
    """Return the most diverse point of at least that reward; None if there is none."""
    there = [point for point in points if measure in point.shares and point.reward >= reward]
    return max(there, key=lambda point: point.shares[measure], default=None)


def _measure(runs: Sequence[tuple[Run, list[dict[str, Any]]]], warnings: list[str]) -> str | None:
    """Return the first measure of diversity that all runs have, else the first that one has; runs without it are named."""
    having = {key: [run.path for run, evaluations in runs if _has(evaluations, key)] for key in DIVERSITY}
    chosen = next((key for key in DIVERSITY if len(having[key]) == len(runs)), None)
    chosen = chosen or next((key for key in DIVERSITY if having[key]), None)
    without = [str(run.path) for run, _ in runs if chosen is None or run.path not in having[chosen]]
    if without:
        what = titled(chosen) if chosen else "diversity"
        warnings.append(
            f"{what[:1].upper()}{what[1:]} was not measured in all evaluations of {', '.join(without)}: where nothing is known of it, "
            "they have no points there. It takes two pictures of a prompt: evaluation.diversity_images above 1."
        )
    return chosen


def _has(evaluations: Sequence[Mapping[str, Any]], key: str) -> bool:
    values = [finite(mapping(evaluation.get("guard")).get(key)) for evaluation in evaluations]
    return None not in values and bool(values[0])


def _kind_of_kl(runs: Sequence[tuple[Run, list[dict[str, Any]]]], warnings: list[str]) -> str | None:
    """Return which divergence most runs have at every evaluation, that of evaluations where both do; the others are named."""
    without = {
        kind: [str(run.path) for run, es in runs if None in [_kl(run, evaluation, kind) for evaluation in es]]
        for kind in ("evaluation", "training")
    }
    kind = min(without, key=lambda kind: len(without[kind]))
    if len(without[kind]) == len(runs):
        warnings.append("No run has the KL divergence to the base model at every evaluation: there is no chart of it.")
        return None
    if without[kind]:
        warnings.append(
            f"The KL divergence to the base model was not measured in all evaluations of {', '.join(without[kind])}: where nothing is "
            "known of it, they have no points there."
        )
    return kind


def _kl(run: Run, evaluation: Mapping[str, Any], kind: str | None) -> float | None:
    """Return the divergence at an evaluation: by itself, or as the last round before it measured it while learning."""
    if kind == "evaluation":
        return mean_and_half(evaluation.get("kl"))[0]
    if evaluation["round"] == 0:
        return 0.0
    return next((finite(row.get("kl")) for row in run.rounds if row["round"] == evaluation["round"]), None)


def _track(method: Method, kl: str | None, measures: Sequence[str]) -> Track:
    points = []
    for place in range(min(len(curve.reward) for curve in method.curves)):
        found = [curve.evaluations[place] for curve in method.curves]
        rewards = [curve.reward[place] for curve in method.curves]
        kls = [_kl(run, evaluation, kl) for run, evaluation in zip(method.runs, found, strict=True)] if kl else [None]
        number = fmean(evaluation["round"] for evaluation in found)
        about = "base model" if place == 0 else f"round {number:.0f}"
        pairs = [(curve.evaluations[0], evaluation) for curve, evaluation in zip(method.curves, found, strict=True)]
        points.append(_point(about, rewards, [curve.half[place] for curve in method.curves], kls, pairs, measures))
    return Track(method.name, points, method.seeds, [str(run.path) for run in method.runs], method.settings)


def _point(
    about: str,
    rewards: Sequence[float],
    halves: Sequence[float],
    kls: Sequence[float | None],
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    measures: Sequence[str],
) -> Point:
    """Return the mean over seeds; `pairs` are the evaluation of the base model and the present one of each."""
    mean, half = mean_over_seeds(rewards)
    known = [value for value in kls if value is not None]
    shares = {}
    for measure in measures:
        values = [tuple(finite(mapping(e.get("guard")).get(measure)) for e in pair) for pair in pairs]
        none = 1.0 if measure.startswith("vendi") else 0.0
        if all(base is not None and now is not None and base > none for base, now in values):
            shares[measure] = fmean(
                share_of(measure, now, base) for base, now in values if base is not None and now is not None
            )
    return Point(about, mean, halves[0] if half is None else half, fmean(known) if len(known) == len(kls) else None, shares)


def _label(methods: Sequence[Method], metric: Metric) -> tuple[str | None, float]:
    """Return the label of the reward, None for the sum, and -1 where less of it is better as it stands in evaluations."""
    first = methods[0].curves[0].evaluations[0]
    label = metric.reward if mean_and_half(measured(first, metric.reward))[0] is not None else None
    return label, reward_sign([run for method in methods for run in method.runs], label)


def _free(
    method: Method, label: str | None, sign: float, measures: Sequence[str], kl: str | None, warnings: list[str]
) -> list[Track]:
    """Return the track of a method's strengths: the mean over its seeds at every strength that all of them have."""
    kept = {run.path: {entry["strength"]: entry for entry in read_strengths(run.path)} for run in method.runs}
    runs = [run for run in method.runs if len(kept[run.path]) > 1]
    warnings += [f"{run.path} has no measured strengths, and no points of them." for run in method.runs if run not in runs]
    common = sorted(set.intersection(*(set(kept[run.path]) for run in runs))) if runs else []
    points = []
    for strength in common:
        found = [kept[run.path][strength] for run in runs]
        values = [mean_and_half(measured(entry, label)) for entry in found]
        if any(mean is None for mean, _ in values):
            continue
        rewards, halves = [sign * mean for mean, _ in values if mean is not None], [half for _, half in values]
        pairs = [(kept[run.path][0.0], entry) for run, entry in zip(runs, found, strict=True)]
        kls = [mean_and_half(entry.get("kl"))[0] if kl == "evaluation" else None for entry in found]
        points.append(_point(f"strength {strength:g}", rewards, halves, kls, pairs, measures))
    seeds = [run.config.get("seed") for run in runs]
    return [Track(method.name, points, seeds, [str(run.path) for run in runs], method.settings, free=True)] if points else []
