"""Pictures before they are drawn: which things stand where, so that a prompt is true of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from rlcm.builtin.verdict import RELATIONS
from rlcm.builtin.vocabulary import (
    ANIMALS,
    COLOURS,
    TAGS,
    UNSAID,
    Asked,
    colour_is_held_out,
    every,
    prompt,
)

SIZE = 64
SIDES: dict[int, tuple[int, int]] = {1: (34, 46), 2: (24, 30), 3: (21, 26), 4: (20, 24)}
"""How many pixels the longer side of a thing has, by how many there are: from, to."""
APART = 14
"""How many pixels apart the centres of a relation are at least, along its direction."""
TRIES = 128


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing in a picture: class and colour (None of an animal), centre in pixels, pixels of its longer side."""

    kind: int
    colour: int | None
    x: float
    y: float
    side: int


def draw_asked(rng: np.random.Generator, held_out: bool | None, tags: dict[str, float] | None = None) -> Asked:
    """Return something to ask for, its kind by the shares.

    Args:
        held_out: what pretraining never sees (of the kinds that have any), what it sees, or, where None, both alike.
        tags: the kinds and their shares; as in pretraining where there is none.
    """
    shares = dict(tags or TAGS)
    if held_out:
        shares = {tag: share for tag, share in shares.items() if every(tag, True)}
    weights = np.array(list(shares.values()))
    tag = list(shares)[rng.choice(len(shares), p=weights / weights.sum())]
    pool = every(tag, False) + every(tag, True) if held_out is None else every(tag, held_out)
    return pool[rng.integers(len(pool))]


def arrange(asked: Asked, rng: np.random.Generator, held_out: bool | None = False) -> tuple[Thing, ...]:
    """Return things of which the prompt is true, none over another; colours that nobody asked for are drawn.

    Args:
        held_out: False keeps colours that are held out away from things whose colour was not asked for.
    """
    kinds = asked.classes * asked.count if len(asked.classes) == 1 else asked.classes
    colours = asked.colours * asked.count if len(asked.classes) == 1 else asked.colours
    low, high = SIDES[len(kinds)]
    while True:
        # Many tries at once: of four things, one place in some hundreds fits.
        sides = rng.integers(low, high + 1, (TRIES, len(kinds)))
        room = sides[..., None] / 2 + 1
        centres = room + rng.random((TRIES, len(kinds), 2)) * (SIZE - 2 * room)
        fits = _apart(centres, sides)
        if asked.relation is not None:
            fits &= _related(centres, asked.relation)
        if fits.any():
            first = int(fits.argmax())
            break
    things = zip(kinds, colours, centres[first], sides[first], strict=True)
    return tuple(Thing(c, _colour(c, k, rng, held_out), float(x), float(y), int(side)) for c, k, (x, y), side in things)


def caption(asked: Asked, rng: np.random.Generator) -> str:
    """Return a caption of pretraining: in UNSAID of those that say a number, a relation or a colour, one of these is left out."""
    if rng.random() >= UNSAID or asked.tag in ("single_object", "two_object"):
        return prompt(asked)
    return prompt(asked, unsaid=int(rng.integers(1, 4)))


def _colour(kind: int, colour: int | None, rng: np.random.Generator, held_out: bool | None) -> int | None:
    if colour is not None or kind < len(ANIMALS):
        return colour
    free = [k for k in range(len(COLOURS)) if held_out is not False or not colour_is_held_out(kind, k)]
    return int(rng.choice(free))


def _apart(centres: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Say of tries [T, N, 2] and [T, N] whether no two things touch: booleans [T]."""
    fits = np.ones(len(centres), bool)
    for i, j in itertools.combinations(range(sides.shape[1]), 2):
        fits &= np.abs(centres[:, i] - centres[:, j]).max(-1) >= (sides[:, i] + sides[:, j]) / 2
    return fits


def _related(centres: np.ndarray, relation: str) -> np.ndarray:
    x, y = RELATIONS[relation]
    difference = centres[:, 0] - centres[:, 1]
    along = difference @ np.array([x, y])
    across = np.abs(difference[:, 1 if x else 0])
    return (along >= APART) & (along > across)
