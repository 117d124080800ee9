"""What a prompt asks for, in the form of GenEval's prompt files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rlcm.builtin.vocabulary import Entry, Relation
from rlcm.errors import ConfigError
from rlcm.rewards.user import first_problems

_EXAMPLE = (
    '{"prompt": "a photo of two cats", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}'
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Objects of one class that a picture must show."""

    name: str
    """Their class."""
    count: int
    """How many, at least."""
    colour: str | None = None
    """The colour that as many of them must have."""
    relation: Relation | None = None
    """Where they must be, all of them, seen from the other group."""
    other: int = 0
    """Index of that group among what is wanted."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one prompt asks for."""

    wanted: tuple[Wanted, ...]
    """All of it must be in the picture."""
    unwanted: tuple[tuple[str, int], ...] = ()
    """(class, count): so many of a class, or more, must not be."""
    counting: bool = False
    """Whether the prompt is about a number, for which detectors are asked more strictly."""

    @property
    def classes(self) -> list[str]:
        """The classes that a detector must look for, each once."""
        return list(dict.fromkeys([*(group.name for group in self.wanted), *(name for name, _ in self.unwanted)]))

    @property
    def coloured(self) -> bool:
        """Whether a colour is asked for."""
        return any(group.colour for group in self.wanted)


def asked_of(prompt: str, metadata: Mapping[str, Any]) -> Asked:
    """Return what a prompt asks for, as its metadata says.

    GenEval's format (Ghosh et al. 2023, arXiv:2310.11513): `include`, a list of objects with `class`, `count` and perhaps `color`
    and `position` (a relation, and the index of an earlier entry); `exclude`, a list of `class` and `count`; a `tag`, which is
    `counting` where the number matters most.

    Raises:
        ConfigError: if the metadata are not of this form.
    """
    try:
        entry = Entry.model_validate(dict(metadata))
        for index, clause in enumerate(entry.include):
            if clause.position and clause.position[1] >= index:
                raise ConfigError(
                    f"the prompt {prompt!r}: include.{index}.position points at entry {clause.position[1]}, which does not come before "
                    f"it; use an index below {index}."
                )
    except ValidationError as error:
        raise ConfigError(
            f"the prompt {prompt!r} does not say what must be in its picture ({first_problems(error)}); take prompts from a .jsonl "
            f"file with lines such as {_EXAMPLE}"
        ) from None
    return Asked(
        tuple(Wanted(clause.name, clause.count, clause.colour, *(clause.position or (None, 0))) for clause in entry.include),
        tuple((clause.name, clause.count) for clause in entry.exclude),
        entry.tag == "counting",
    )
