"""Evaluations in lines of text, for a terminal and a log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rlcm.report.words import asked


def before_and_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yield what became of every figure from one evaluation to a later one of the same run: rewards, held-out rewards, the judge."""
    parts = list(after["rewards"])
    if len(parts) == 1 and parts == list(before["rewards"]):
        yield f"{parts[0]} {_change(before['reward'], after['reward'])} on {after['images']} fixed images"
    else:
        made_of = ", made of" if parts else ""
        yield f"reward {_change(before['reward'], after['reward'])} on {after['images']} fixed images{made_of}"
        yield from (f"    {label} {_change(before['rewards'].get(label), after['rewards'][label])}" for label in parts)
    for label, value in after["held_out"].items():
        yield f"held out, {label}: {_change(before['held_out'].get(label), value)}"
    for question, value in (after["judge"] or {}).items():
        yield f"held-out judge, {asked(question)}: {_judged(before, question, value)}"


def before_alone(before: Mapping[str, Any]) -> str:
    """Return in a line what the evaluation before the training found, where there is no other."""
    name = next(iter(before["rewards"])) if len(before["rewards"]) == 1 else "reward"
    return f"{name} {_number(before['reward'])} on {before['images']} fixed images, before the training; none since"


def on_the_way(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return in a line what an evaluation between the first and the last one of a run found."""
    judged = "".join(
        f"; judge, {asked(question)}: {_judged(before, question, value)}"
        for question, value in list((after["judge"] or {}).items())[:1]
    )
    change = _change(before["reward"], after["reward"])
    return f"after round {after['round']}, on {after['images']} fixed images: reward {change}{judged}"


def _change(before: Mapping[str, float] | None, after: Mapping[str, float]) -> str:
    return _number(after) if before is None else f"{_number(before)} -> {_number(after)}"


def _number(found: Mapping[str, float]) -> str:
    return "not scored" if math.isnan(found["mean"]) else f"{found['mean']:.4g}"


def _judged(before: Mapping[str, Any], question: str, after: Mapping[str, float]) -> str:
    """Return a share before and after; only after where the judge was not asked that before, as on other prompts."""
    first = (before["judge"] or {}).get(question)
    return f"{after['mean']:.1%}" if first is None else f"{first['mean']:.1%} -> {after['mean']:.1%}"
