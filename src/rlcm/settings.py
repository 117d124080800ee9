"""The base of every component's settings: immutable, typed, closed to unknown keys."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

Changes = Mapping[str, Any]
"""Nested values of settings, by name; some of them or all."""


class Settings(BaseModel):
    """A component's settings. A field's docstring is its documentation; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


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
