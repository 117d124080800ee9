"""What the world holds, and what can be asked of a picture of it: prompts of six kinds, with metadata in GenEval's format."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlcm.builtin.verdict import RELATIONS

ANIMALS: tuple[str, ...] = (
    *("dog", "cat", "fox", "panda", "monkey", "pig"),
    *("frog", "chicken", "tiger", "owl", "rabbit", "penguin"),
)
THINGS: tuple[str, ...] = ("star", "heart", "car", "boat", "book", "balloon", "cap", "backpack")
"""What comes in every colour; an animal has its own."""
CLASSES: tuple[str, ...] = ANIMALS + THINGS
COLOURS: tuple[str, ...] = ("red", "yellow", "green", "blue", "purple")
NUMBERS: dict[int, str] = {2: "two", 3: "three", 4: "four"}
TAGS: dict[str, float] = {
    "single_object": 0.12,
    "two_object": 0.20,
    "counting": 0.20,
    "colors": 0.12,
    "position": 0.20,
    "color_attr": 0.16,
}
"""The kinds of prompts, by GenEval's names, and their shares in pretraining."""
Relation = Literal["left of", "right of", "above", "below"]
_Name = Annotated[str, Field(min_length=1)]
UNSAID = 0.3
"""The share of captions in pretraining that leave out the number, the relation or a colour, as captions of the web do."""


class Clause(BaseModel):
    """Objects of one class, and how many, in GenEval's format of metadata."""

    model_config = ConfigDict(strict=True, extra="ignore")
    name: _Name = Field(alias="class")
    count: int = Field(default=1, ge=1, le=1000)

    @model_validator(mode="before")
    @classmethod
    def _without_others(cls, values: Any) -> Any:
        """Refuse a key that nobody reads: what it asks for would be left out in silence."""
        if not isinstance(values, Mapping):
            return values
        known = [field.alias or name for name, field in cls.model_fields.items()]
        others = [key for key in values if key not in known]
        if others:
            raise ValueError(f"{others[0]!r} is not among what an entry takes: {', '.join(known)}")
        return values


class Include(Clause):
    """Objects that a picture must show: perhaps in a colour, or seen from those of an earlier entry."""

    colour: _Name | None = Field(default=None, alias="color")
    # A list in JSON, a tuple in Python: not strict.
    position: tuple[Relation, Annotated[int, Field(ge=0, strict=True)]] | None = Field(default=None, strict=False)


class Entry(BaseModel):
    """What a prompt asks for, in GenEval's format: what must be in its picture and what, so often or more, must not."""

    model_config = ConfigDict(extra="ignore")
    tag: str = ""
    include: list[Include] = Field(min_length=1)
    exclude: list[Clause] = []


@dataclass(frozen=True, slots=True)
class Asked:
    """What a prompt asks for: things of one or two classes, with colours, a number or a relation.

    `classes` and `colours` go together, and hold indices into CLASSES and COLOURS; no colour is asked for where it is None.
    """

    tag: str
    classes: tuple[int, ...]
    colours: tuple[int | None, ...]
    count: int = 1
    """How many, where there is one class."""
    relation: str | None = None
    """Where the first thing is as seen from the second."""


def article(word: str) -> str:
    """Return the word with its indefinite article: "a fox", "an owl"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plural(word: str) -> str:
    """Return the plural of a class: "foxes", "cats"."""
    return word + ("es" if word[-1] in "xs" else "s")


def unknown_words(prompts: Iterable[str]) -> list[str]:
    """Return the words of prompts that the built-in model has never read, in quotes and in their order."""
    spoken = {"a", "an", "the", "one", "and", "of", "to", *NUMBERS.values(), *COLOURS}
    spoken |= {word for relation in RELATIONS for word in relation.split()}
    spoken |= {word for name in CLASSES for word in (name, plural(name))}
    words = (word for prompt in prompts for word in re.findall(r"\w+", prompt.lower()))
    return [f'"{word}"' for word in dict.fromkeys(words) if word not in spoken]


def prompt(asked: Asked, unsaid: int = 0) -> str:
    """Return the prompt: "three foxes", "a star left of an owl", "a red car and a blue heart".

    Args:
        unsaid: 0 says everything. Else the number, the relation or a colour is left out: of two colours the first with 1,
            the second with 2, both with 3.
    """
    colours = list(asked.colours)
    if unsaid and len(colours) == 1:
        colours = [None]
    elif unsaid:
        colours = [None if unsaid >> i & 1 else colour for i, colour in enumerate(colours)]
    names = [CLASSES[c] if k is None else f"{COLOURS[k]} {CLASSES[c]}" for c, k in zip(asked.classes, colours, strict=True)]
    if asked.count > 1:
        return plural(names[0]) if unsaid else f"{NUMBERS[asked.count]} {plural(names[0])}"
    joined = "and" if unsaid or asked.relation is None else asked.relation
    return f" {joined} ".join(article(name) for name in names)


def metadata(asked: Asked) -> dict[str, Any]:
    """Return what GenEval's checker reads: tag, include, exclude and prompt.

    One thing more of a class than was asked for is excluded in every kind, not in counting alone.
    """
    include: list[dict[str, Any]] = [
        {"class": CLASSES[c], "count": asked.count} | ({} if k is None else {"color": COLOURS[k]})
        for c, k in zip(asked.classes, asked.colours, strict=True)
    ]
    if asked.relation is not None:
        # GenEval says where a thing is of an earlier one, so the second thing of the prompt comes first.
        include = [include[1], include[0] | {"position": [asked.relation, 0]}]
    exclude = [{"class": item["class"], "count": item["count"] + 1} for item in include]
    return {"tag": asked.tag, "include": include, "exclude": exclude, "prompt": prompt(asked)}


def known(text: str, said: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a picture of this prompt must have, as metadata; None if that is not known, or nothing of this world.

    Args:
        text: the prompt, which says it itself if it is one of the world's, with or without "a picture of" before it.
        said: metadata that stood beside it, which are believed if they say in GenEval's format what to include.
    """
    if "include" not in said:
        asked = _by_prompt().get(text.strip().lower().removeprefix("a picture of "))
        return None if asked is None else metadata(asked)
    return said if is_of_the_world(said) else None


def is_of_the_world(said: Mapping[str, Any]) -> bool:
    """Say whether metadata are in GenEval's format and name classes and colours of the world alone; anything may be given."""
    try:
        entry = Entry.model_validate(dict(said))
    except ValidationError:
        return False
    if any(item.position and item.position[1] >= place for place, item in enumerate(entry.include)):
        return False
    colours = {item.colour for item in entry.include} - {None}
    return {item.name for item in (*entry.include, *entry.exclude)} <= set(CLASSES) and colours <= set(COLOURS)


@cache
def _by_prompt() -> dict[str, Asked]:
    return {prompt(asked): asked for tag in TAGS for held_out in (False, True) for asked in every(tag, held_out)}


def is_held_out(asked: Asked) -> bool:
    """Say whether no generator's training may see such a picture: a tenth of the pairs, numbers and colours of things."""
    if len(asked.classes) == 2 and pair_is_held_out(*asked.classes):
        return True
    if asked.count > 1 and _tenth(f"{asked.count} {CLASSES[asked.classes[0]]}"):
        return True
    pairs = zip(asked.classes, asked.colours, strict=True)
    return any(k is not None and colour_is_held_out(c, k) for c, k in pairs)


def pair_is_held_out(first: int, second: int) -> bool:
    """Say whether these two classes are never together in a picture of pretraining."""
    return _tenth(" and ".join(sorted((CLASSES[first], CLASSES[second]))))


def colour_is_held_out(thing: int, colour: int) -> bool:
    """Say whether a thing of this class never has this colour in pretraining."""
    return _tenth(f"{COLOURS[colour]} {CLASSES[thing]}")


@lru_cache
def every(tag: str, held_out: bool) -> tuple[Asked, ...]:
    """Return all that can be asked of one kind: what pretraining may see, or what it never sees."""
    return tuple(asked for asked in _every(tag) if is_held_out(asked) == held_out)


def _every(tag: str) -> Iterator[Asked]:
    classes, things = range(len(CLASSES)), range(len(ANIMALS), len(CLASSES))
    if tag == "single_object":
        yield from (Asked(tag, (c,), (None,)) for c in classes)
    elif tag == "two_object":
        yield from (Asked(tag, pair, (None, None)) for pair in itertools.permutations(classes, 2))
    elif tag == "counting":
        yield from (Asked(tag, (c,), (None,), count=n) for c in classes for n in NUMBERS)
    elif tag == "colors":
        yield from (Asked(tag, (c,), (k,)) for c in things for k in range(len(COLOURS)))
    elif tag == "position":
        pairs = itertools.permutations(classes, 2)
        yield from (Asked(tag, pair, (None, None), relation=r) for pair in pairs for r in RELATIONS)
    elif tag == "color_attr":
        colours = list(itertools.permutations(range(len(COLOURS)), 2))
        yield from (Asked(tag, pair, two) for pair in itertools.permutations(things, 2) for two in colours)
    else:
        raise ValueError(f"tag={tag!r} is none of {', '.join(TAGS)}")


def _tenth(words: str) -> bool:
    return zlib.crc32(words.encode()) % 10 == 9
