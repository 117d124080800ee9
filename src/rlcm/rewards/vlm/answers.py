"""What a vision-language model says about a picture, and how it is read from a chat completion."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from rlcm.rewards.served.wire import WireError

WORDS = ("yes", "no")


@dataclass(slots=True)
class Answer:
    """What a model said about one picture."""

    text: str
    probabilities: dict[str, float] = field(default_factory=dict)
    """Of the first token, by the token in lower case without spaces; only those that were reported."""


class Vlm(Protocol):
    """Answers one question about each picture; None where no answer could be had and that is allowed."""

    def __call__(self, images: Tensor, questions: Sequence[str], /) -> list[Answer | None]: ...


def read_completion(body: bytes) -> Answer:
    """Return the answer in the body of a chat completion.

    Raises:
        WireError: if it is not one.
    """
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
        logprobs = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
        pairs = [(str(entry["token"]), math.exp(min(0.0, float(entry["logprob"])))) for entry in logprobs]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"the answer is no chat completion ({type(error).__name__}: {error}): {body[:80]!r}") from error
    if not isinstance(text, str):
        raise WireError(f"the answer has no text: {body[:80]!r}")
    return Answer(text, _by_word(pairs))


def _by_word(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, probability in pairs:
        word = token.strip().lower()
        found[word] = found.get(word, 0.0) + probability
    return found
