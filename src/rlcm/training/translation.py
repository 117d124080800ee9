"""What was written in a file as on the command line, `run.rounds=2` or `run.rounds: 2`, as it is written in a file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from types import NoneType
from typing import Any, get_args, get_origin

from rlcm.settings import alternatives, declared, is_group
from rlcm.yaml_text import Written, write_yaml

_LINE = re.compile(r"\s*(?:-\s+)?([A-Za-z_][\w.]*)(?:\s*=|:(?![ \t]|$))\s*(.*?)\s*")


def assignments(text: str, names: Collection[str]) -> list[str]:
    """Return the lines `key=value` and `key:value` of a text, as `key=value`.

    Args:
        names: what a key may be.
    """
    lines = (re.sub(r"\s#.*", "", line) for line in text.split("\n"))
    found = [match for match in map(_LINE.fullmatch, lines) if match and match[1] in names]
    return [f"{match[1]}={match[2]}" for match in found]


def unfolded(kind: Any, values: Mapping[str, Any], place: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return nested values whose keys have no dots where these lead into a group of settings, and the keys that had any.

    Args:
        kind: of the settings.
        values: of `read_yaml`.
        place: of the group, dotted, with a dot after it.
    """
    result: dict[str, Any] = {}
    dotted: list[str] = []
    for key, value in values.items():
        if not isinstance(key, str):
            result[key] = value
            continue
        written = key.removeprefix(place)
        if "." in key and _leads_somewhere(kind, written.split(".")):
            dotted.append(key)
            *groups, key = written.split(".")
            target = result
            for group in groups:
                below = target.get(group)
                target[group] = target = dict(below) if isinstance(below, Mapping) else {}
        else:
            target = result
        value, more = _below(declared(kind, written.split(".")), value, f"{place}{written}.")
        dotted += more
        known = target.get(key)
        target[key] = {**known, **value} if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result, dotted


def in_a_file(values: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Return lines of YAML that say some of the values, each of them on a line of its own."""
    return "".join(f"\n    {key}: {write_yaml(_of_yaml(values[key]), flow=True)}" for key in dict.fromkeys(keys))


def _of_yaml(value: Any) -> Any:
    """Return a value of Python as YAML can say it: numbers of NumPy and torch as Python's, what else there is as text."""
    if isinstance(value, Enum):
        return _of_yaml(value.value)
    if isinstance(value, Mapping):
        return {str(key): _of_yaml(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_of_yaml, value))
    if hasattr(value, "tolist") and not isinstance(value, type):
        return _of_yaml(value.tolist())
    return value if type(value) in (Written, str, int, float, bool, NoneType) else str(value)


def _leads_somewhere(kind: Any, path: list[str]) -> bool:
    """Return whether a key with dots names a setting, or stands for one of a group."""
    first = declared(kind, path[:1])
    return len(path) == 1 or declared(kind, path) is not None or any(map(is_group, alternatives(first)))


def _below(kind: Any, value: Any, place: str) -> tuple[Any, list[str]]:
    kinds = alternatives(kind)
    group = next((one for one in kinds if is_group(one)), None)
    if isinstance(value, Mapping) and group is not None:
        return unfolded(group, value, place)
    inner = next((get_args(one)[0] for one in kinds if get_origin(one) in (list, tuple)), None)
    if isinstance(value, list) and inner is not None:
        found = [_below(inner, entry, "") for entry in value]
        return [entry for entry, _ in found], [key for _, keys in found for key in keys]
    return value, []
