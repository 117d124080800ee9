"""What is wrong with settings, in words: the key, the value, what is accepted, and what to type instead."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rlcm.lookalikes import keyboard, named, visible
from rlcm.settings import Settings, leaves
from rlcm.training import other_names
from rlcm.training.values import assignment, oddities, spelt
from rlcm.yaml_text import meant, read_yaml

_LIST, _MAPPING = "input should be a list", "input should be a mapping, such as {name: value}"
_WORDS = {"list_type": _LIST, "tuple_type": _LIST, "dict_type": _MAPPING, "model_type": _MAPPING}
"""What pydantic calls by names of Python, by its kind of problem."""


def in_words(kind: type[Settings], error: ValidationError) -> str:
    """Return what is wrong with settings of a kind, a line for each."""
    return "\n".join(_explain(kind, dict(detail)) for detail in _as_meant(error.errors()))


def _as_meant(details: Sequence[Any]) -> list[Any]:
    """Return problems without those that say of a list that it is no text, where a list would do as well."""
    return [d for d in details if len(details) == 1 or not (d["loc"][-1:] == ("str",) and isinstance(d["input"], list))]


def _explain(kind: type[Settings], detail: dict[str, Any]) -> str:
    unknown = detail["type"] == "extra_forbidden"
    *path, last = detail["loc"] or ("",)
    # The alternatives of a setting's type, such as str and tuple[str, ...], are no part of its name.
    location = [part for part in path if not _is_alternative(part)] + ([last] if unknown or not _is_alternative(last) else [])
    key = ".".join(map(str, location))
    if unknown:
        known = _known_keys(kind, location[:-1])
        word = spelt(str(location[-1]))
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        near = [name for name in names_of(kind) if name.rpartition(".")[2] == word and not location[:-1] and word not in known]
        near = near or [".".join([*map(str, location[:-1]), name]) for name in close[:1]]
        if elsewhere := other_names.ours([*location[:-1], word], names_of(kind), is_near=bool(near)):
            near = [elsewhere]
        hint = f"did you mean {' or '.join(near)}?" if near else f"it may be {', '.join(known)}."
        return f"{visible(key) if key.strip() else repr(key)} is not a setting{oddities(key)}; {hint}"
    message = _WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, ")).removesuffix(".")
    if detail["type"] in ("too_short", "too_long"):
        count = detail["ctx"]["min_length" if detail["type"] == "too_short" else "max_length"]
        message = f"give at {'least' if detail['type'] == 'too_short' else 'most'} {count} value{'s' * (count != 1)}"
    if isinstance(detail["input"], str) and "in digits" in message and (odd := named(detail["input"])):
        message += f"; it has {odd} in it: write {keyboard(detail['input']).strip()}"
    if not key or (detail["type"] == "value_error" and isinstance(detail["input"], dict)):
        return f"{message}."  # of settings that do not fit together: it names them itself
    field = _field(kind, location)
    meaning = " ".join(((field and field.description) or "").split())
    if detail["type"] == "missing":
        return f"{key} is missing; set it{': ' if meaning else ''}{meaning}"
    group = _settings_in(field.annotation) if field else None
    if detail["type"] == "model_type" and group:
        first = next(iter(group.model_fields))
        members = f"{key} is a group, of {', '.join(group.model_fields)}"
        return f"{key}={detail['input']!r}: {members}; set one, such as {key}.{first}=... (in a file {key}: {{{first}: ...}})"
    if field and detail["type"] in ("list_type", "tuple_type") and (remedy := _as_list(kind, location, detail["input"])):
        return f"{key}={detail['input']!r}: write a list, such as {remedy}."
    if detail["type"] == "string_type" and isinstance(detail["input"], dict):
        return f"{key}={detail['input']!r}: input should be a text; one with a colon goes into quotes."
    if detail["type"] == "string_pattern_mismatch" and meaning:
        return f"{key}={detail['input']!r} is not accepted; what it is: {meaning}"
    return f"{key}={detail['input']!r}: {message[0].lower()}{message[1:]}."


_WORD = re.compile(r"[\w.\-]+")


def _as_list(kind: type[Settings], location: Sequence[Any], value: Any) -> str:
    """Return what to type for a list of plain words between commas, or of one value; nothing where that would not do either."""
    owner, name = _owner(kind, location), str(location[-1])
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else []
    several = [[*map(_number, words)]] if len(words) > 1 and all(_WORD.fullmatch(word) for word in words) else []
    for entries in (*several, [_number(value)], [value]):
        problems: Sequence[Any] = ()
        try:
            owner.model_validate({name: entries})
        except ValidationError as error:
            problems = error.errors()
        if not any(problem["loc"][:1] == (name,) for problem in problems):
            return assignment(".".join(map(str, location)), entries)
    return ""


def _number(value: Any) -> Any:
    """Return the number that a text is, anything else as it is."""
    found = value
    with contextlib.suppress(ValueError):
        found = meant(read_yaml(value)) if isinstance(value, str) else value
    return found if isinstance(found, (int, float)) else value


def _is_alternative(part: Any) -> bool:
    return isinstance(part, str) and ("[" in part or part in ("str", "tuple"))


def names_of(kind: type[Settings]) -> list[str]:
    """Return the dotted names of all settings of a kind."""
    return [name for name, _ in leaves(kind)]


def _owner(kind: type[Settings], location: Sequence[Any]) -> Any:
    """Return the settings that have what is at a place inside `kind`; None where there are none."""
    here: Any = kind
    for part in location[:-1]:
        if not isinstance(part, int) and here is not None:
            here = _settings_in(here.model_fields[part].annotation) if part in here.model_fields else None
    return here


def _field(kind: type[Settings], location: Sequence[Any]) -> FieldInfo | None:
    """Return the description of the setting at a place inside `kind`."""
    here = _owner(kind, location)
    return here.model_fields.get(location[-1]) if here is not None and location else None


def _known_keys(kind: type[Settings], location: Sequence[Any]) -> list[str]:
    """Return the keys of the settings at a place inside `kind`, through lists and tuples of settings."""
    here: Any = kind
    for part in location:
        if not isinstance(part, int):
            here = _settings_in(here.model_fields[part].annotation)
    return list(here.model_fields)


def _settings_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    found = (_settings_in(inner) for inner in getattr(annotation, "__args__", ()))
    return next((inner for inner in found if inner is not None), None)
