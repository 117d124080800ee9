"""What a person should know of a run, in plain words: what the guard measured, read as advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from rlcm.errors import ConfigError
from rlcm.report.run import Run
from rlcm.report.values import finite, half_of_change, mapping, mean_and_half
from rlcm.report.words import DIVERSITY, NBSP, asked, recognised_less, written
from rlcm.training.watch import Watch

LATEST = 5
"""Rounds that are looked at together."""
ALIKE, COLLAPSED = 0.5, 0.2
"""Shares of its diversity before training under which pictures of one prompt grow alike, and are all but one and the same."""


Topic = Literal["reward", "held out", "judge", "diversity", "detail", "extremes", "leash", "learning", "run"]
"""What a piece of advice is about: one tile of the page each."""
Verdict = Literal["ok", "watch", "bad"]


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to know."""

    kind: Literal["warning", "note"]
    title: str
    text: str
    topic: Topic = "run"
    bad: bool = False
    """Whether the run does harm, in place of being something to watch."""


def advice_on(run: Run) -> list[Advice]:
    """Return what to know of a run, the gravest first: what the guard warns of, why it stopped, what could not be read."""
    found = [*_pictures(run), *_reward(run), *_rounds(run), *_altered(run), *_stopped(run), *_damaged(run)]
    return sorted(found, key=lambda one: (one.kind != "warning", not one.bad))


def verdict_on(advice: Sequence[Advice], topic: Topic) -> Verdict:
    """Return whether all is well with a topic, it is to be watched, or it is bad."""
    found = [one.bad for one in advice if one.topic == topic and one.kind == "warning"]
    return "bad" if any(found) else "watch" if found else "ok"


def _pictures(run: Run) -> list[Advice]:
    """Return what the judge and the measures of the pictures say, against the model before training."""
    if len(run.evaluations) < 2:
        return []
    first, last = run.evaluations[0], run.outcome
    found = []
    for question, value in mapping(last.get("judge")).items():
        (old, wide), (new, narrow) = mean_and_half(mapping(first.get("judge")).get(question)), mean_and_half(value)
        if (
            old is not None
            and new is not None
            and recognised_less(old, new, half_of_change(last, f"judge.{question}", wide, narrow))
        ):
            found.append(
                Advice(
                    "warning",
                    f"The judge sees less: {asked(question)}",
                    f"{percent(new)} of the pictures, {percent(old)} before training. The model may be trading what it draws for "
                    "reward. Take an earlier round, stop, or hold it closer with a larger algorithm.kl_coefficient.",
                    "judge",
                    bad=True,
                )
            )
    before, after = mapping(first.get("guard")), mapping(last.get("guard"))

    def change(key: str) -> tuple[float, float] | None:
        old, new = finite(before.get(key)), finite(after.get(key))
        return None if old is None or new is None else (old, new)

    if (pair := next(filter(None, map(change, DIVERSITY)), None)) and pair[1] < ALIKE * pair[0]:
        found.append(
            Advice(
                "warning",
                "Pictures of one prompt look alike" if pair[1] < COLLAPSED * pair[0] else "Pictures of one prompt grow alike",
                f"They differ {percent(pair[1] / pair[0])} as much as before training. Stop earlier, or raise "
                "algorithm.kl_coefficient.",
                "diversity",
                bad=pair[1] < COLLAPSED * pair[0],
            )
        )
    if (pair := change("high_frequency")) and pair[1] > 3 * pair[0]:
        found.append(
            Advice(
                "warning",
                "Fine noise is spreading over the pictures",
                f"There is {written(pair[1] / pair[0], 1)} times as much finest detail as before training, often a texture that only "
                "the reward likes. Look at the samples closely.",
                "detail",
            )
        )
    if (pair := change("high_frequency")) and pair[1] < 0.1 * pair[0]:
        found.append(
            Advice(
                "warning",
                "The pictures are losing their detail",
                f"{percent(pair[1] / pair[0])} of the finest detail is left of what there was before training: they turn into blur "
                "or plain areas.",
                "detail",
            )
        )
    if (pair := change("saturated")) and pair[1] > max(3 * pair[0], 0.1):
        found.append(
            Advice(
                "warning",
                "Large areas are turning black or white",
                f"{percent(pair[1])} of all pixels, {percent(pair[0])} before training.",
                "extremes",
            )
        )
    for key, colour in (("near_black", "black"), ("near_white", "white")):
        if (pair := change(key)) and pair[1] > pair[0] + 0.05:
            found.append(
                Advice(
                    "warning",
                    f"Whole pictures are turning {colour}",
                    f"{percent(pair[1])} of the pictures are nearly {colour}, {percent(pair[0])} were before training. The reward "
                    "likes empty pictures: it needs a second reward beside it, or a larger algorithm.kl_coefficient.",
                    "extremes",
                    bad=True,
                )
            )
    return found


def _reward(run: Run) -> list[Advice]:
    """Return whether the trained reward and those held out go the same way."""
    if len(run.evaluations) < 2:
        return []
    first, last = run.evaluations[0], run.outcome
    found = []
    way = trend(first.get("reward"), last, "reward")
    if way < 0:
        found.append(
            Advice(
                "warning",
                "The reward is worse than before training",
                "On the fixed prompts and seeds it fell by more than chance explains. The learning rate (optimizer.lr) may be too "
                "high, or a reward may be at odds with another.",
                "reward",
                bad=True,
            )
        )
    found += [
        Advice(
            "warning",
            f"{label} falls while the reward rises",
            "It is held out: measured, and not trained on. The gain may be a trick that this one reward falls for.",
            "held out",
        )
        for label in mapping(last.get("held_out"))
        if way > 0 and trend(mapping(first.get("held_out")).get(label), last, f"held_out.{label}") < 0
    ]
    return found


def _rounds(run: Run) -> list[Advice]:
    """Return what the latest rounds of training say."""
    latest = run.rounds[-LATEST:]

    def mean(key: str) -> float | None:
        values = [value for row in latest if (value := finite(row.get(key))) is not None]
        return fmean(values) if values else None

    found = []
    target = finite(mapping(run.config.get("algorithm")).get("kl_target"))
    kl = mean("kl")
    if kl is not None and target and kl > 2 * target:
        found.append(
            Advice(
                "warning",
                "The model is straying from its base faster than its leash allows",
                f"Its KL divergence is {written(kl)}, the target {written(target)}. The leash tightens by itself; if this goes on, "
                "lower optimizer.lr.",
                "leash",
            )
        )
    if (idle := mean("idle_groups")) is not None and idle > 0.5:
        tried = mapping(run.config.get("algorithm")).get("loss") == "nft"
        finer = "" if tried else "; if the reward is only right or wrong, try algorithm.loss=nft"
        found.append(
            Advice(
                "warning",
                "Much of the sampling teaches nothing",
                f"In {percent(idle)} of the groups all pictures get the same reward, so none is better than another. A finer reward, "
                f"or larger groups, would help{finer}.",
                "learning",
            )
        )
    dropped = sum(finite(row.get("dropped_images")) or 0.0 for row in latest)
    if dropped:
        found.append(
            Advice(
                "warning",
                "Some pictures could not be scored",
                f"A reward failed for {dropped:,.0f} pictures of the last {len(latest)} rounds; they were left out of the learning. "
                "The log says why.",
                "learning",
            )
        )
    if skipped := mean("skipped_updates"):
        found.append(
            Advice(
                "warning",
                "Updates are being left out",
                f"{percent(skipped)} of the latest updates had a loss or gradient that was not finite. Lower optimizer.lr, or use "
                "model.precision=fp32.",
                "learning",
            )
        )
    return found


def _stopped(run: Run) -> list[Advice]:
    """Return why a run ended before its last round, by looking at its evaluations as the training did."""
    settings = mapping(run.config.get("evaluation"))
    if not (settings.get("patience") or settings.get("least")):
        return []
    watch = Watch(str(settings.get("best", "reward")), settings.get("patience"), mapping(settings.get("least")))
    try:
        for evaluation in run.evaluations:
            verdict = watch.look(evaluation, int(evaluation["round"]))
            if verdict.stop:
                title = f"The training ended itself after round {evaluation['round']:.0f}"
                return [Advice("note", title, f"{verdict.stop[:1].upper()}{verdict.stop[1:]}.")]
    except (ConfigError, LookupError, TypeError, ValueError):  # of a damaged eval.json nothing can be said
        pass
    return []


def _altered(run: Run) -> list[Advice]:
    return [Advice("warning", "Before and after are not of one and the same run", text) for text in run.altered]


def _damaged(run: Run) -> list[Advice]:
    texts = [text for text in run.missing if any(word in text for word in ("cannot be read", "damaged", "Part of config.yaml"))]
    return [Advice("note", "Part of the run's folder is damaged", text) for text in texts]


def trend(before: Any, last: Mapping[str, Any], name: str) -> int:
    """Return 1 or -1 where a figure rose or fell by more than the interval of its change, else 0.

    Args:
        before: mean and ci95.
        last: the later evaluation.
        name: of the figure in it: `reward`, or `held_out.` and a label.
    """
    group, _, key = name.partition(".")
    (old, wide), (new, narrow) = (
        mean_and_half(before),
        mean_and_half(mapping(last.get(group)).get(key) if key else last.get(group)),
    )
    if old is None or new is None or abs(new - old) <= half_of_change(last, name, wide, narrow):
        return 0
    return 1 if new > old else -1


def percent(share: float) -> str:
    """Return a share as percent, a small one with a decimal."""
    return f"{written(100 * share, 0 if share > 0.0995 else 1)}{NBSP}%"
