"""Sets of prompts of the world, with their metadata: to train on, to be tested on, and what pretraining never saw."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlcm.builtin.world.vocabulary import TAGS, Asked, every, metadata

SETS: dict[str, str] = {
    "world": "187 prompts of the six kinds, to train on: one thing, two, a number, a colour, a place, two colours",
    "world-unseen": "135 other prompts of the same kinds, none of them in `world`",
    "world-held-out": "120 prompts for what the built-in model never saw in pretraining: pairs, numbers and colours",
}
"""The sets by name, and what is in them."""
_TRAINED, _UNSEEN = 40, 30  # of a kind, at most


def prompt_set(name: str) -> list[dict[str, Any]]:
    """Return a set's prompts as metadata in GenEval's format, kind by kind: tag, include, exclude, prompt."""
    return [metadata(asked) for tag in TAGS for asked in _of_kind(name, tag)]


def _of_kind(name: str, tag: str) -> list[Asked]:
    pool = every(tag, held_out=name == "world-held-out")
    order = [pool[i] for i in np.random.default_rng(len(pool)).permutation(len(pool))]
    if name == "world-held-out":
        return order[:_TRAINED]
    trained = min(_TRAINED, round(0.6 * len(order)))
    return order[:trained] if name == "world" else order[trained : trained + _UNSEEN]
