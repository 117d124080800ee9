"""The base of every component's settings: immutable, typed, closed to unknown keys."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from rlcm.yaml_text import Written, meant

Changes = Mapping[str, Any]
"""Nested values of settings, by name; some of them or all."""
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Of a normal number in single precision, in which models compute: a smaller one is 0 there, a larger one infinite."""


class Settings(BaseModel):
    """A component's settings. A field's docstring is its documentation; unknown keys are errors.

    Values are what they say they are: a text is no number, 1 is not `true`, and a text setting takes an unquoted scalar of YAML
    as it is written, or a path.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_declared(cls, value: Any, info: ValidationInfo) -> Any:
        return as_declared(cls.model_fields[str(info.field_name)].annotation, value)


def as_declared(kind: Any, value: Any) -> Any:
    """Return a value of Python or of `read_yaml` as a setting of some type takes it; what else is wrong, pydantic says.

    Raises:
        PydanticCustomError: if it would have to be guessed what is meant.
    """
    kinds = alternatives(kind)
    if Any in kinds:
        return meant(value)
    takes_text = any(one is str or get_origin(one) is Literal for one in kinds)
    if takes_text and isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Written):
        if value.value is None and NoneType in kinds:
            return None
        if value == "" and any(map(is_group, kinds)):
            return {}  # a group's name with nothing below it
        if value.value is None and value and takes_text:
            raise _refused(f"input should be a text; write '' for none, or \"{value}\" in quotes for that word")
        value = str(value) if takes_text else value.value
    if isinstance(value, Mapping):
        inner = next((get_args(one)[1] for one in kinds if get_origin(one) is dict), None)
        if inner is not None:
            return {str(key) if isinstance(key, str) else key: as_declared(inner, entry) for key, entry in value.items()}
        return value if any(map(is_group, kinds)) else meant(value)
    if isinstance(value, Iterable) and not isinstance(value, (Sized, BaseModel)):
        raise _refused("input should be a list: what is read one by one may have no end")
    if isinstance(value, (set, frozenset)):
        raise _refused("input should be a list: a set has no order")
    if isinstance(value, (list, tuple)):
        inners = next((_inner_kinds(one, len(value)) for one in kinds if get_origin(one) in (list, tuple)), None)
        return meant(list(value)) if inners is None else list(map(as_declared, inners, value))
    if not takes_text:
        _check_scalar(kinds, value)
    return value


def alternatives(kind: Any) -> list[Any]:
    """Return the types of which a setting of some type may be one."""
    if get_origin(kind) is Annotated:
        return alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) for one in alternatives(part)]
    return [kind]


def is_group(kind: Any) -> bool:
    """Return whether a type is that of a group of settings."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def is_place(part: str) -> bool:
    """Return whether a part of a dotted name can be the place of an entry in a list: 0, 1, 2 ..."""
    return re.fullmatch("0|[1-9][0-9]{0,8}", part) is not None


def declared(kind: Any, path: Sequence[str]) -> Any:
    """Return the type of the setting at a place inside a group, None where there is none; entries of lists have numbers."""
    for part in path:
        groups = [one for one in alternatives(kind) if is_group(one)]
        inner = [get_args(one)[1] for one in alternatives(kind) if get_origin(one) is dict]
        if is_place(part):
            inner += [get_args(one)[0] for one in alternatives(kind) if get_origin(one) in (list, tuple)]
        if groups and part in groups[0].model_fields:
            kind = groups[0].model_fields[part].annotation
        elif inner:
            kind = inner[0]
        else:
            return None
    return kind


def merge(*parts: Changes) -> dict[str, Any]:
    """Return nested mappings as one; what comes later wins."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            below = result.get(key)
            nested = isinstance(value, Mapping)
            result[key] = merge(below if isinstance(below, Mapping) else {}, value) if nested else copy.deepcopy(value)
    return result


def leaves(kind: type[Settings], before: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield all settings of a kind by their dotted names, groups of settings unfolded, without what lies in lists."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            yield from leaves(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", field


def _inner_kinds(kind: Any, count: int) -> list[Any]:
    """Return the types of the values of a list or tuple with so many of them."""
    inner = get_args(kind)
    return list(inner) if len(inner) == count and Ellipsis not in inner else [inner[0]] * count


def _check_scalar(kinds: list[Any], value: Any) -> None:
    """Refuse a text or a truth value in place of a number, and the other way round."""
    numbers = "a valid number" if float in kinds else "a valid integer" if int in kinds else ""
    if bool in kinds:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            raise _refused("input should be true or false")
    elif numbers and isinstance(value, bool):
        raise _refused(f"input should be {numbers}, not true or false")
    elif numbers and isinstance(value, str) and re.fullmatch(r"[-+]?0[0-9_]*[0-9]", value):
        raise _refused(f"input should be {numbers}, without a zero in front, which some programs read as octal")
    elif numbers and isinstance(value, str):
        raise _refused(f"input should be {numbers}, written in digits and without quotes")
    elif (
        float in kinds and isinstance(value, (int, float)) and (0 < abs(value) < _SMALLEST or _LARGEST < abs(value) < math.inf)
    ):
        raise _refused(f"input should be 0, or from {_SMALLEST:.2g} to {_LARGEST:.2g} in size, as single precision has it")


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("not_as_declared", "{message}", {"message": message})  # its template must be a literal
