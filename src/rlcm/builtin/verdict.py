"""Is a prompt true of what was found in a picture? The rules of GenEval's checker, in our own words; no model, no tensor.

Ghosh et al. 2023, "GenEval" (arXiv 2310.11513): every class that is asked for is found as often as asked, in the colour that
was asked, and where it was asked to be; and of what is excluded there are fewer than the count that is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""In which direction a thing is seen from another: (x, y), y downwards."""
MARGIN = 0.125
"""So far apart the centres of a relation are at least, along its direction, as a share of the picture's side."""


@dataclass(frozen=True, slots=True)
class Found:
    """A thing that a detector found; box (left, top, right, bottom) as shares of the picture's sides."""

    name: str
    colour: str | None
    box: tuple[float, float, float, float]
    confidence: float = 1.0

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y), as shares of the picture's sides."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def verdict(found: Sequence[Found], asked: Mapping[str, Any]) -> bool:
    """Say whether all that `asked` includes was found, and nothing that it excludes.

    Args:
        found: what is in the picture.
        asked: metadata in GenEval's format. `include` is a list of {"class", "count"}, with "color" and
            "position": [relation, index of an earlier item] where asked; `exclude` one of {"class", "count"}.
    """
    return all(fulfilled(found, asked))


def fulfilled(found: Sequence[Found], asked: Mapping[str, Any]) -> list[bool]:
    """Return an answer for each thing that was asked, in this order: count, colour and position of every item; exclusions.

    A colour is right if as many things as were asked for have it; a position, if any thing of the class is there as seen from
    any of the other.
    """
    answers = []
    matched: list[list[Found]] = []
    for item in asked.get("include", ()):
        of_class = sorted((f for f in found if f.name == item["class"]), key=lambda f: -f.confidence)
        count = item.get("count", 1)
        answers.append(len(of_class) >= count)
        if item.get("color"):
            of_class = [f for f in of_class if f.colour == item["color"]]
            answers.append(len(of_class) >= count)
        if item.get("position"):
            relation, index = item["position"]
            answers.append(any(related(a, b, relation) for a in of_class for b in matched[index]))
        matched.append(of_class)
    fewer = [sum(f.name == item["class"] for f in found) < item.get("count", 1) for item in asked.get("exclude", ())]
    return answers + fewer


def related(first: Found, second: Found, relation: str, margin: float = MARGIN) -> bool:
    """Say whether `first` is left of, right of, above or below `second`: far enough that way, and further than across."""
    x, y = RELATIONS[relation]
    dx, dy = first.centre[0] - second.centre[0], first.centre[1] - second.centre[1]
    along, across = dx * x + dy * y, abs(dy if x else dx)
    return along >= margin and along > across
