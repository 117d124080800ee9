"""Whether a picture shows what was asked: the rules of GenEval, over the boxes that a detector found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlcm.rewards.verified.asked import Asked, Wanted

NEAR = 0.1
"""Share of the two objects' sizes by which their centres must differ before one lies to a side of the other."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object that a detector found."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels."""
    score: float
    """The detector's confidence, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of what was asked."""

    right: bool
    """Whether all of it is there."""
    share: float
    """The share of the demands that are met, 0 to 1; 1 only if all are."""
    reasons: tuple[str, ...]
    """What is wrong, in words."""


def judge(
    asked: Asked, found: Mapping[str, Sequence[Found]], colours_of: Callable[[str, Sequence[Found]], Sequence[str]]
) -> Verdict:
    """Return the verdict on one picture.

    The rules are GenEval's (Ghosh et al. 2023, arXiv:2310.11513): of every class the `count` most confident objects are looked
    at. So many must be there; so many must have the colour; every one of them must lie to the given side of every object of
    the other group; and no class may appear as often as `exclude` says.

    The demands that `share` counts are: each object, each colour of an object, each relation (by the pairs that keep it), and
    each `exclude`. An upper limit of a class that is also wanted counts once there are enough of it. A picture with nothing wanted
    in it meets none.

    Args:
        asked: what the prompt asks for.
        found: the objects of each class, in any order.
        colours_of: the colours of objects, given their class.
    """
    groups: list[Sequence[Found]] = []
    met: list[float] = []
    reasons: list[str] = []
    for wanted in asked.wanted:
        group = sorted(found.get(wanted.name, ()), key=lambda one: -one.score)[: wanted.count]
        groups.append(group)
        met += [1.0] * len(group) + [0.0] * (wanted.count - len(group))
        if len(group) < wanted.count:
            reasons.append(f"{len(group)} of {wanted.count} {wanted.name}")
        if wanted.colour:
            colours = list(colours_of(wanted.name, group)) if group else []
            matching = colours.count(wanted.colour)
            met += [1.0] * matching + [0.0] * (wanted.count - matching)
            if matching < wanted.count:
                reasons.append(
                    f"{matching} of {wanted.count} {wanted.name} {wanted.colour} (seen: {', '.join(colours) or 'none'})"
                )
        if wanted.relation:
            met.append(_kept(wanted, group, groups[wanted.other], asked.wanted[wanted.other]))
            if met[-1] < 1:
                reasons.append(f"{wanted.name} not {wanted.relation} {asked.wanted[wanted.other].name}")
    least: dict[str, int] = {}
    for wanted in asked.wanted:
        least[wanted.name] = max(wanted.count, least.get(wanted.name, 0))
    for name, count in asked.unwanted:
        there = len(found.get(name, ()))
        met.append(float(least.get(name, 0) <= there < count))
        if there >= count:
            reasons.append(f"{there} {name}, fewer than {count} were asked for")
    share = sum(met) / len(met) if any(groups) else 0.0
    return Verdict(not reasons, 1.0 if not reasons else share, tuple(reasons))


def _kept(wanted: Wanted, group: Sequence[Found], others: Sequence[Found], other: Wanted) -> float:
    """Return the share of the asked pairs that keep the relation."""
    kept = sum(wanted.relation in relations(one, two) for one in group for two in others)
    return kept / (wanted.count * other.count)


def relations(one: Found, two: Found) -> set[str]:
    """Return to which sides of the second object the first one lies: none, one, or two at a diagonal.

    The offset of the centres is shortened, along each axis, by a tenth of the two sizes; a side counts if what is left is more
    than half of the whole distance.
    """
    first, second = np.array(one.box).reshape(2, 2), np.array(two.box).reshape(2, 2)
    offset = first.mean(0) - second.mean(0)
    distance = float(np.linalg.norm(offset))
    if distance == 0:
        return set()
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    x, y = np.sign(offset) * np.maximum(np.abs(offset) - NEAR * sizes, 0) / distance
    sides = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {side for side, there in sides.items() if there}


def without_doubles(objects: Sequence[Found], overlap: float) -> list[Found]:
    """Return the objects, the most confident first, without those that cover a more confident one by more than `overlap`.

    Args:
        overlap: area of the intersection over that of the union; 1 keeps all.
    """
    kept: list[Found] = []
    for one in sorted(objects, key=lambda found: -found.score):
        if overlap >= 1 or all(_overlap(one.box, other.box) <= overlap for other in kept):
            kept.append(one)
    return kept


def _overlap(one: Sequence[float], two: Sequence[float]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(width, 0.0) * max(height, 0.0)
    whole = (one[2] - one[0]) * (one[3] - one[1]) + (two[2] - two[0]) * (two[3] - two[1]) - shared
    return shared / whole if whole > 0 else 0.0
