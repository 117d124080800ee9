"""How far a picture has what was asked, as a number that pictures can be improved along: the verdict's graded form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlcm.builtin.detector import Maps
from rlcm.builtin.verdict import MARGIN, RELATIONS
from rlcm.builtin.vocabulary import CLASSES, COLOURS

SOFTNESS = 0.1
"""How gradually a position becomes right, as a share of the picture's side."""
SHARPNESS = 6.0
"""How much more the likelier of two cells counts in a centre."""
LEAST = 1e-3
"""The probability of a demand that is not met at all, so that a picture without it can still be improved in other ways."""


def graded(maps: Maps, asked: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return how far each picture has what was asked: [B] in [0, 1], differentiable in the maps.

    It is the geometric mean, over all that `rlcm.builtin.verdict.fulfilled` answers, of a probability in place of the answer: all of
    it must be there, and what is missing has the steepest gradient. A count takes the likeliest peaks, a colour what the maps say
    there, a position the centres of gravity of two classes.

    Args:
        maps: what a detector says of B pictures.
        asked: B metadata in GenEval's format, with the world's classes and colours.
    """
    probability = maps.classes.sigmoid()
    peaks = probability >= F.max_pool2d(probability.detach(), 3, 1, 1)
    heights = _highest((probability * peaks).flatten(2), max(map(_most, asked), default=1))
    x, y = _centres(maps, probability)
    coloured = probability * peaks
    hue = maps.colours.softmax(1)
    return torch.stack([_one(a, heights[i], coloured[i], hue[i], x[i], y[i]) for i, a in enumerate(asked)])


def _one(asked: Mapping[str, Any], heights: Tensor, peaks: Tensor, hue: Tensor, x: Tensor, y: Tensor) -> Tensor:
    parts = []
    include = asked.get("include", ())
    for item in include:
        kind, count = CLASSES.index(item["class"]), item.get("count", 1)
        present = heights[kind, :count]
        parts.append(present.mean())
        if item.get("color"):
            parts.append(_highest((peaks[kind] * hue[COLOURS.index(item["color"])]).flatten(), count).mean())
        if item.get("position"):
            relation, index = item["position"]
            other = CLASSES.index(include[index]["class"])
            both = present[0] * heights[other, 0]
            parts.append(both * _related(x[kind] - x[other], y[kind] - y[other], relation))
    # One too many is there as surely as the peak of that rank.
    parts += [1 - heights[CLASSES.index(item["class"]), item.get("count", 1) - 1] for item in asked.get("exclude", ())]
    return (LEAST + (1 - LEAST) * torch.stack(parts)).log().mean().exp()


def _most(asked: Mapping[str, Any]) -> int:
    return max((item.get("count", 1) for part in ("include", "exclude") for item in asked.get(part, ())), default=1)


def _highest(values: Tensor, count: int) -> Tensor:
    """Return the `count` highest along the last axis; zeros in place of those that there are not."""
    there = min(count, values.shape[-1])
    return F.pad(values.topk(there, dim=-1).values, (0, count - there))


def _related(dx: Tensor, dy: Tensor, relation: str) -> Tensor:
    towards_x, towards_y = RELATIONS[relation]
    along, across = dx * towards_x + dy * towards_y, (dy if towards_x else dx).abs()
    far = torch.sigmoid((along - MARGIN) / SOFTNESS)
    straight = torch.sigmoid((along - across) / SOFTNESS)
    return far * straight


def _centres(maps: Maps, probability: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centre of each class [B, 20] twice, x and y, as shares of the picture's side: all cells' centres, weighed.

    The weights are those of a softmax over the cells, so that where a class is faint everywhere its centre still moves.
    """
    weights = (SHARPNESS * probability + maps.classes.clamp(-12, 12)).flatten(2).softmax(-1)
    x, y = (centre.flatten(1)[:, None] for centre in maps.centres())
    return (weights * x).sum(-1), (weights * y).sum(-1)
