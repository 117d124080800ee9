"""The built-in detector as a checker: of pictures of the built-in model's world, on the CPU, with nothing to download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rlcm.builtin import model_path
from rlcm.builtin.detector import RewardDetector
from rlcm.builtin.graded import graded
from rlcm.builtin.judging import fitted
from rlcm.builtin.verdict import Found, fulfilled
from rlcm.builtin.vocabulary import CLASSES, COLOURS, known
from rlcm.errors import ConfigError
from rlcm.rewards.learned.clip import Lazy
from rlcm.rewards.verified.asked import asked_of
from rlcm.rewards.verified.verdict import Verdict

Told = Sequence[Mapping[str, Any]]


class WorldChecker:
    """Whether pictures have what was asked, by the rules of `rlcm.builtin.verdict`; another detector than the held-out judge's."""

    def __init__(self) -> None:
        self._detector = Lazy(lambda: RewardDetector.load(model_path("detector")))

    def asked(self, prompts: Sequence[str], metadata: Told) -> list[Mapping[str, Any]]:
        """Return what each prompt asks for, in GenEval's format: its metadata, or, of a prompt of the world, what it says.

        Raises:
            ConfigError: if that is not known, or nothing that the built-in detector knows.
        """
        found = []
        for prompt, entry in zip(prompts, metadata, strict=True):
            if "include" in entry:
                asked_of(prompt, entry)  # that it is of the form
            asked = known(prompt, entry)
            if asked is None:
                raise ConfigError(
                    f"the prompt {prompt!r} asks for nothing that the built-in detector knows. It knows {', '.join(CLASSES)}, "
                    f"the colours {', '.join(COLOURS)}, and the words of prompts=world, such as three foxes, a red car, a star left "
                    "of an owl. For other prompts give the reward a detector, as in rewards='[{name: composition, args: {model: "
                    "IDEA-Research/grounding-dino-tiny}}]', and the prompts metadata in GenEval's format (docs/rewards.md)."
                )
            found.append(asked)
        return found

    def verdicts(self, images: Tensor, asked: Told) -> list[Verdict]:
        """Return for each of B images [B, 3, h, w] in [0, 1] what is right and wrong with it."""
        found = self._detector().find(fitted(images))
        return [_verdict(things, entry) for things, entry in zip(found, asked, strict=True)]

    def graded(self, images: Tensor, asked: Told) -> Tensor:
        """Return how far each image has what was asked: [B] in [0, 1], differentiable; see `rlcm.builtin.graded`."""
        return graded(self._detector()(fitted(images)), asked)


def _verdict(things: Sequence[Found], asked: Mapping[str, Any]) -> Verdict:
    answers = fulfilled(things, asked)
    seen = ", ".join(f"{thing.colour} {thing.name}" if thing.colour else thing.name for thing in things) or "nothing"
    return Verdict(all(answers), sum(answers) / len(answers), () if all(answers) else (f"seen: {seen}",))
