"""What a function or class has from outside: from outer functions, from its module, and from modules of the user's."""

from __future__ import annotations

import contextlib
import datetime
import dis
import enum
import functools
import importlib.util
import inspect
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rlcm.rewards.imported import is_installed
from rlcm.runs import digests

_DATES = (datetime.date, datetime.time, datetime.timedelta)
PLAIN = (
    type(None),
    numbers.Number,
    str,
    bytes,
    enum.Enum,
    np.generic,
    range,
    slice,
    PurePath,
    *_DATES,
    torch.dtype,
    torch.device,
)
"""The kinds of values that say all of themselves, and never change."""
_FIXED = (*PLAIN, re.Pattern, Image.Image, nn.Module)
_MAKING = ("__init__", "__new__", "__post_init__")
_LAYERS = 12


class OfModule(NamedTuple):
    """A list, a dict or an object of a module: what it holds later, the reward may have put there itself."""

    space: Mapping[str, Any]
    """The module's names."""
    name: str
    value: Any


def from_outside(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values that a function has from outside: its defaults, what it has from an outer function, and what it names
    of its module and of modules of the user's. Of a decorated one, those of all its layers.

    Names that it assigns to itself are what it remembers.
    """
    for number, layer in enumerate(unwrapped(function)):
        code: Any = getattr(layer, "__code__", None)
        if not isinstance(code, CodeType):
            continue
        before = f"layer {number} " if number else ""
        yield from ((f"{before}default {i}", value) for i, value in enumerate(layer.__defaults__ or ()))
        yield from ((f"{before}default {name}", value) for name, value in (layer.__kwdefaults__ or {}).items())
        stored = _names(code, "STORE_DEREF", "STORE_GLOBAL")
        for name, cell in zip(code.co_freevars, layer.__closure__ or (), strict=True):
            if name not in stored and _is_full(cell):
                yield f"{before}{name}", cell.cell_contents
        names = sorted(_names(code, "LOAD_GLOBAL", "LOAD_NAME") - stored)
        space = layer.__globals__
        yield from _of_module("global", space, names)
        for name in names:
            if isinstance(module := space.get(name), ModuleType) and not is_foreign(module):
                yield from _of_module(name, vars(module), sorted(_names(code, "LOAD_ATTR", "LOAD_METHOD")))
        for name in sorted(_names(code, "IMPORT_NAME")):
            if (file := _file_of(name)) is not None:
                yield f"import {name}", digests.of_source(file)


def _of_module(label: str, space: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield what a module has under these names and a reward may be made of."""
    for name in names:
        if name.startswith("__") or name not in space:
            continue
        value = space[name]
        if isinstance(value, FunctionType) or inspect.isclass(value) or hasattr(value, "__wrapped__"):
            counts = not is_foreign(unwrapped(value)[-1])
        else:
            known = (*_FIXED, list, dict, set, Tensor, np.ndarray, functools.partial)
            counts = isinstance(value, known) or not (isinstance(value, ModuleType) or is_foreign(type(value)))
        if counts:
            yield f"{label} {name}", OfModule(space, name, value) if may_change(value) else value


def outside_of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what the methods of a class have from outside, and its plain values."""
    for name, value in vars(kind).items():
        plain = getattr(value, "fget", None) or getattr(value, "__func__", value)  # of a property, a static method
        if isinstance(value, PLAIN) and not name.startswith("__"):
            yield name, value
        yield from from_outside(plain)


def unwrapped(thing: Any) -> list[Any]:
    """Return a function and those that it was decorated from, the innermost last."""
    found = [thing]
    with contextlib.suppress(Exception):  # of objects whose attributes raise
        while len(found) < _LAYERS and not inspect.isclass(thing) and found[-1].__wrapped__ is not None:
            found.append(found[-1].__wrapped__)
    return found


def attributes_assigned(kind: type) -> set[str]:
    """Return the attributes to which the methods of a class assign, apart from those that make an object."""
    methods = [named for one in kind.__mro__ if not is_foreign(one) for named in vars(one).items()]
    codes = [getattr(unwrapped(method)[-1], "__code__", None) for name, method in methods if name not in _MAKING]
    names = set[str]().union(*(_names(code, "STORE_ATTR") for code in codes if isinstance(code, CodeType)))
    return names | {name.lstrip("_").rpartition("__")[2] for name in names}


def _names(code: CodeType, *operations: str) -> set[str]:
    """Return the names to which a code, and those of functions within it, apply some of Python's operations."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in operations}
    return found.union(*(_names(one, *operations) for one in code.co_consts if isinstance(one, CodeType)))


def _file_of(module: str) -> Path | None:
    """Return the file of a module of the user's that is imported within a function; None of others."""
    try:
        spec = None if "." in module else importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    file = Path(spec.origin) if spec is not None and spec.origin else None
    return file if file is not None and file.suffix == ".py" and file.is_file() and not is_installed(file) else None


def may_change(value: Any) -> bool:
    """Say whether a value is of a kind in which a reward may put what it remembers."""
    if isinstance(value, (tuple, frozenset)):
        return any(map(may_change, value))
    return not (isinstance(value, _FIXED) or inspect.isroutine(value) or inspect.isclass(value))


def is_foreign(thing: Any) -> bool:
    """Say whether a function, class or module is of something installed, or of Python itself."""
    try:
        return is_installed(Path(inspect.getfile(thing)))
    except (OSError, TypeError):  # of no file
        return getattr(thing, "__module__", None) != "__main__"


def _is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (it raises where there is nothing yet)
    except ValueError:
        return False
    return True
