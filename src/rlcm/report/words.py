"""What a run did, in words and numbers."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from rlcm.report.run import Run
from rlcm.report.values import finite, half_of_change, mapping, mean_and_half

NBSP = "\N{NO-BREAK SPACE}"
MEANINGS = {
    "diversity": "Distance between pictures of the same prompt, in pixels. A fall towards 0 means that they all look alike.",
    "diversity_judge": "Distance between pictures of the same prompt, as the judge sees them. At 0 they all look alike.",
    "diversity_clip": "Distance between pictures of the same prompt, as CLIP sees them. At 0 they all look alike.",
    "vendi_judge": "How many different pictures of a prompt there are in effect, as the judge sees them. At 1 they all look alike.",
    "vendi_clip": "How many different pictures of a prompt there are in effect, as CLIP sees them. At 1 they all look alike.",
    "saturated": "Share of pixels that are nearly black or white.",
    "near_black": "Share of pictures that are nearly black.",
    "near_white": "Share of pictures that are nearly white.",
    "high_frequency": "Energy of the finest detail. A steep rise means noise; a fall means plainer pictures.",
    "kl": "Distance of the policy from the base model. It grows as the model learns, and should level off.",
    "clip_fraction": "Share of actions whose ratio left PPO's clip range.",
    "ratio_deviation": "Mean distance from 1 of the ratio of new to old policy.",
    "grad_norm": "Norm of the gradient before it is clipped.",
    "loss": "The policy-gradient loss; it need not fall.",
    "lr": "Learning rate.",
    "reward_std": "Spread of the rewards in a round.",
    "images_per_second": "Images sampled, scored and trained on in a second.",
}


TITLES = {
    "diversity": "diversity (pixels)",
    "diversity_judge": "diversity (judge)",
    "diversity_clip": "diversity (CLIP)",
    "vendi_judge": "Vendi score (judge)",
    "vendi_clip": "Vendi score (CLIP)",
}
DIVERSITY = ("diversity_judge", "diversity_clip", "diversity")
"""Names of the distance between pictures of one prompt among the guard's figures, the most telling first."""


def titled(key: str) -> str:
    """Return the name of one of the guard's figures as people read it."""
    return TITLES.get(key, key.replace("_", " "))


def decimals(*values: float) -> int:
    """Return how many decimals show three digits of the largest value."""
    largest = max((abs(v) for v in values), default=0.0)
    return 3 if largest == 0 else max(0, min(8, 2 - math.floor(math.log10(largest))))


def written(value: float, digits: int | None = None) -> str:
    """Return a number with `digits` decimals, or three digits, and a true minus sign."""
    shown = f"{value:,.{decimals(value) if digits is None else digits}f}"
    return shown.replace("-", "−") if float(shown.replace(",", "")) else shown.removeprefix("-")


def counted(number: int, noun: str) -> str:
    """Return "1 image" or "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def with_unit(value: float | None, unit: str, digits: int | None = None) -> str:
    """Return a number with its unit; nothing for None."""
    if value is None:
        return ""
    return written(value, digits) + (NBSP + unit if unit else "")


def duration(seconds: float) -> str:
    """Return a time in the units that people would give it in."""
    if seconds < 9.95:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NBSP}s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s".replace(" ", NBSP)
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min".replace(" ", NBSP)


def byte_size(size: int) -> str:
    """Return a size of a file in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{written(size / scale)}{NBSP}{unit}"
    return f"{size} bytes"


def signed_change(before: float, after: float) -> str:
    """Return a signed change: in percent where both are positive, else plain."""
    if before > 0 and after > 0:
        percent = 100 * (after - before) / before
        shown = written(percent, 0 if abs(percent) >= 9.95 else 1)
        return f"+{shown}{NBSP}%" if percent > 0 and shown.strip("0.") else f"{shown}{NBSP}%"
    shown = written(after - before, decimals(before, after))
    return f"+{shown}" if after > before else shown


WRONG_WAY = ", the wrong way"


def headline(run: Run) -> tuple[str, str, str]:
    """Return the sentence that says what the run did, in three parts; the middle one is emphasised."""
    run = run.up_to_final()
    metric, compared = run.metric, len(run.evaluations) > 1
    subject = metric.label[:1].upper() + metric.label[1:]
    took = _took(run)
    if compared:
        first, last = metric.interval(run.evaluations[0]), metric.interval(run.outcome)
    else:
        values = [value for row in run.rounds if (value := metric.of_round(row)) is not None]
        few = max(1, min(5, len(values) // 4))
        ends = (fmean(values[:few]), fmean(values[-few:])) if len(values) > 1 else None
        first, last = ((ends[0], 0.0), (ends[1], 0.0)) if ends else (None, None)
    if first is None or last is None:
        done = counted(run.last_round, "round") if run.last_round else "no finished round yet"
        return "This run has ", done, f"{took}, and no two measurements to compare."
    (before, wide), (after, narrow) = first, last
    half = half_of_change(run.outcome if compared else {}, metric.name, wide, narrow)
    digits = decimals(before, after)
    numbers = f" ({written(before, digits)} → {with_unit(after, metric.unit, digits)})"
    if written(before, digits) == written(after, digits) or abs(after - before) < half / 2:
        return f"{subject} ", "hardly changed", f"{numbers}{took}{_judged(run)}."
    verb, size = ("rose", "+") if after > before else ("fell", "−")
    change = signed_change(before, after).removeprefix(size)
    amount = change if change.endswith("%") else f"by {with_unit(abs(after - before), metric.unit, digits)}"
    worse = "" if (after < before) == metric.lower_is_better else WRONG_WAY
    where = "" if compared else " over the training pictures"
    return f"{subject} ", f"{verb} {amount}", f"{numbers}{took}{where}{worse}{_judged(run)}."


def recognised_less(before: float, after: float, half: float) -> bool:
    """Return whether a share of pictures that the judge recognises fell by more than 2 points and than the interval of its change."""
    return after < before - max(0.02, half)


def headline_by_judge(run: Run) -> tuple[tuple[str, str, str], str] | None:
    """Return the sentence on what the judge finds, in three parts, and one on the reward; None where it was not asked what is right."""
    run = run.up_to_final()
    found = _by_judge(run)
    if found is None or found[0] != "right" or run.metric.question != "right":
        return None
    (old, _), (new, _) = found[1:]
    start, emphasis, rest = headline(run)
    if ")" not in rest:  # the reward was not measured twice
        return None
    means = rest[: rest.index(")") + 1] + (WRONG_WAY if WRONG_WAY in rest else "")
    subject = start if start[1:2].isupper() else f"{start[:1].lower()}{start[1:]}"
    reward = f"a held-out judge says what is right. The reward: {subject}{emphasis}{means}"
    return ("Right pictures: ", f"{100 * old:.1f}{NBSP}% → {100 * new:.1f}{NBSP}%", _took(run)), reward


def _took(run: Run) -> str:
    """Return how long a run took, and that it was changed on the way, as the end of a sentence."""
    took = f" in {duration(run.seconds)}" if run.seconds else ""
    return took + (", with a change on the way" if run.altered else "")


def _by_judge(run: Run) -> tuple[str, tuple[float, float], tuple[float, float]] | None:
    """Return what the judge was asked first, and the share with its interval before and after; None where it was not asked twice."""
    if len(run.evaluations) < 2:
        return None
    before, after = (mapping(found.get("judge")) for found in (run.evaluations[0], run.outcome))
    question = next(iter(after), "")
    (old, wide), (new, narrow) = mean_and_half(before.get(question)), mean_and_half(after.get(question))
    return None if old is None or new is None else (question, (old, wide), (new, narrow))


def _judged(run: Run) -> str:
    found = _by_judge(run)
    if found is None:
        return ""
    question, (old, wide), (new, narrow) = found
    shares = f"{100 * new:.1f}{NBSP}%", f"({100 * old:.1f}{NBSP}% before)"
    if question == "right":
        return f"; the judge finds {shares[0]} of the pictures right {shares[1]}"
    half = half_of_change(run.outcome, f"judge.{question}", wide, narrow)
    still = "now recognises only" if recognised_less(old, new, half) else "still recognises"
    return f"; the judge {still} {shares[0]} of the {question}s {shares[1]}"


KINDS = {
    "right": "right pictures",
    "single_object": "right, of one thing",
    "two_object": "right, of two things",
    "counting": "right, of a number",
    "colors": "right, of a colour",
    "position": "right, of a place",
    "color_attr": "right, of two colours",
}
"""What the judge of the built-in model is asked, in words."""


def asked(question: str) -> str:
    """Return what a question asks the judge, as a label."""
    return KINDS.get(question, f"{question} recognised")


def summary(run: Run) -> list[str]:
    """Return what was run, in a few words each."""
    config, last = run.config, (run.rounds or [{}])[-1]
    model, sampler, lora = (mapping(config.get(key)) for key in ("model", "sampler", "lora"))
    path = str(model.get("path", ""))
    calls = finite((run.evaluations or [{}])[-1].get("steps")) or finite(sampler.get("steps"))
    facts = [
        {"builtin": "the built-in model", "builtin-teacher": "the built-in teacher"}.get(path, path),
        f"{calls:.0f} sampling steps" if calls else "",
        f"LoRA of rank {lora['rank']}" if lora.get("rank") else "",
        f"{run.last_round} rounds" if run.last_round else "",
        f"{queries:,.0f} images scored" if (queries := finite(last.get("reward_queries"))) else "",
    ]
    return [fact for fact in facts if fact]


def comparison(run: Run) -> list[dict[str, str]]:
    """Return the rows of the table of before and after."""
    if len(run.evaluations) < 2:
        return []
    first, last = run.evaluations[0], run.outcome
    rows = []

    def add(name: str, before: Any, after: Any, *, unit: str = "", percent: bool = False, meaning: str = "") -> None:
        (old, wide), (new, narrow) = mean_and_half(before), mean_and_half(after)
        if old is None or new is None:
            return
        digits = 1 if percent else decimals(old, new)
        scale, unit = (100.0, "%") if percent else (1.0, unit)
        shown = [
            written(mean * scale, digits)
            + (f" ± {written(half * scale, digits)}" if half else "")
            + (f" {unit}" if unit else "")
            for mean, half in ((old, wide), (new, narrow))
        ]
        points = 100 * (new - old)
        change = f"{'+' if points > 0 else ''}{written(points, 1)} points" if percent else signed_change(old, new)
        rows.append({"name": name, "before": shown[0], "after": shown[1], "change": change, "meaning": meaning})

    metric, rewards = run.metric, mapping(last.get("rewards"))
    asked_for = run.config.get("rewards")
    made = map(mapping, asked_for if isinstance(asked_for, list) else [])
    weights = {str(one.get("label")): finite(one.get("weight")) for one in made}
    ends = [metric.interval(e) for e in (first, last)]
    shown = [{"mean": end[0], "ci95": end[1]} if end else {} for end in ends]
    direction = "lower" if metric.lower_is_better else "higher"
    add(metric.label, *shown, unit=metric.unit, meaning=f"What was rewarded; {direction} is better.")
    for label in rewards:
        if label != metric.reward:
            weight = weights.get(label)
            meaning = "One of the rewards." if weight is None else f"One of the rewards, with the weight {weight:g}."
            add(str(label), mapping(first.get("rewards")).get(label), rewards[label], meaning=meaning)
    for label, after in mapping(last.get("held_out")).items():
        before = mapping(first.get("held_out")).get(label)
        add(str(label), before, after, meaning="Held out: measured, not trained on.")
    for question, after in mapping(last.get("judge")).items():
        before = mapping(first.get("judge")).get(question)
        add(f"judge: {asked(question)}", before, after, percent=True, meaning=meaning_of(f"judge/{question}"))
    for key, after in mapping(last.get("guard")).items():
        before = mapping(first.get("guard")).get(key)
        add(titled(key), {"mean": before}, {"mean": after}, meaning=meaning_of(key))
    speed = [{"mean": e.get("images_per_second")} for e in (first, last)]
    add("images per second", *speed, meaning="Of sampling and decoding.")
    return rows


def meaning_of(key: str) -> str:
    """Return what a metric says, in a sentence; nothing for one that is not known."""
    if key.startswith("held_out/"):
        return "A reward that is measured and not trained on. If it falls, the gain may be a trick."
    if key.startswith("judge/"):
        question = key.removeprefix("judge/")
        if question in KINDS:
            return "Share of pictures in which a detector that no reward uses finds all that was asked for."
        return f"Share of pictures in which a classifier that no reward uses sees the prompt's {question}."
    return MEANINGS.get(key, "")
