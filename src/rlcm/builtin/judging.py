"""Asks the held-out judge whether pictures show what their prompts name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlcm.builtin import ANIMALS, COLOURS, model_path
from rlcm.builtin.judge import Judge


class PromptJudge:
    """From images [B, 3, 64, 64] and prompts to booleans [B]: is the named animal there, is the background of that colour?

    A question that some prompt leaves open (no animal, or no colour named) is not asked at all.
    """

    def __init__(self) -> None:
        self._judge = Judge.load(model_path("judge"))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        found = dict(zip(("animal", "colour"), self._judge.name(images), strict=True))
        wanted = {"animal": [named(p, ANIMALS) for p in prompts], "colour": [named(p, tuple(COLOURS)) for p in prompts]}
        return {
            question: found[question] == torch.tensor(index)
            for question, index in wanted.items()
            if all(i is not None for i in index)
        }


def named(prompt: str, words: Sequence[str]) -> int | None:
    """Return the index of the only one of `words` that the prompt holds, else None."""
    present = [words.index(word) for word in set(prompt.lower().split()) if word in words]
    return present[0] if len(present) == 1 else None
