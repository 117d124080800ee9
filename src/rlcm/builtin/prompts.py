"""Sets of prompts of the world, with their metadata: to train on, to be tested on, and what pretraining never saw."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from rlcm.builtin.vocabulary import TAGS, Asked, every, metadata

SETS: dict[str, str] = {
    "world": "187 prompts of the six kinds, to train on: one thing, two, a number, a colour, a place, two colours",
    "world-unseen": "135 other prompts of the same kinds, none of them in `world`",
    "world-objects": "20 prompts, each for one thing: a dog, a star ...",
    "world-held-out": "120 prompts for what the built-in model never saw in pretraining: pairs, numbers and colours",
}
"""The sets by name, and what is in them."""
OBJECTS = "world-objects"
_TRAINED, _UNSEEN = 40, 30  # of a kind, at most


def prompt_set(name: str) -> list[dict[str, Any]]:
    """Return a set's prompts as metadata in GenEval's format, the kinds in turn: tag, include, exclude, prompt."""
    if name == OBJECTS:
        return [metadata(asked) for asked in every("single_object", held_out=False)]
    turns = itertools.zip_longest(*(_of_kind(name, tag) for tag in TAGS))
    return [metadata(asked) for turn in turns for asked in turn if asked is not None]


def _of_kind(name: str, tag: str) -> list[Asked]:
    pool = every(tag, held_out=name == "world-held-out")
    order = [pool[i] for i in np.random.default_rng(len(pool)).permutation(len(pool))]
    if name == "world-held-out":
        return order[:_TRAINED]
    trained = min(_TRAINED, round(0.6 * len(order)))
    return order[:trained] if name == "world" else order[trained : trained + _UNSEEN]
