"""What a reward that is a Python object was made with: values, weights and helpers that its own text does not show."""

from __future__ import annotations

import dataclasses
import datetime
import dis
import enum
import functools
import inspect
import numbers
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path, PurePath
from types import CodeType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rlcm.rewards.sources import own_text
from rlcm.rewards.user import is_installed, signature_of
from rlcm.runs import digests

_DEEPEST = 8
_DATES = (datetime.date, datetime.time, datetime.timedelta)
_PLAIN = (type(None), bool, numbers.Number, str, range, PurePath, *_DATES, torch.dtype, torch.device)
_FIXED = (*_PLAIN, bytes, enum.Enum, np.generic, re.Pattern, Image.Image, nn.Module)
_FIRST_SEEN: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""What a reward was made with when this process first looked: what changed since, it may have changed itself."""


def made_with(reward: Callable[..., Any]) -> Any:
    """Return what a reward was made with, as JSON; None where there is nothing.

    That is: arguments of a partial; constructor arguments that an instance keeps under their names; weights of a torch module; base
    classes; what an inner function has from the outer one; and values, functions and classes of the user's modules that it names.
    Numbers and texts count as they are, weights by a digest, and lists, dicts and objects by what is in them.

    What a reward counts or remembers while it works is none of them. So names that functions assign to from within do not count, and
    within a process lists, dicts, arrays, objects and attributes that methods assign to count as they were when it was first seen.
    """
    found: list[Any] = []
    while isinstance(reward, functools.partial):
        found.append([_described(reward.args), _described(reward.keywords)])
        reward = reward.func
    reward = inspect.unwrap(reward)
    owner: Any = getattr(reward, "__self__", reward)
    named, assigned = dict(_from_outside(reward)), set[str]()
    if is_object := not (inspect.isroutine(owner) or inspect.isclass(owner) or inspect.ismodule(owner)):
        named |= _kept(owner) | _of_classes(owner)
        assigned = _attributes_assigned(type(owner))
    settled = {name: _described(value, settled=True) for name, value in named.items() if name not in assigned}
    whole = {name: _described(value) for name, value in named.items()}
    if isinstance(owner, nn.Module):
        parameters = dict(owner.named_parameters())
        known = _first_seen(owner, "names of weights", {"": list(parameters)})[""]  # others were loaded while it worked
        settled["weights"] = _weights({name: parameters[name] for name in known if name in parameters})
        whole["buffers"] = _weights(dict(owner.named_buffers()))
    if named or is_object:
        found += [settled, _first_seen(owner, getattr(reward, "__qualname__", ""), whole)]
    return found or None


def _first_seen(owner: Any, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as they were when this process first asked for those of this object."""
    try:
        return _FIRST_SEEN.setdefault(owner, {}).setdefault(name, values)
    except TypeError:  # it cannot be a key
        return values


def _from_outside(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values that a function has from outside: from an outer function, from its module, and from modules of the
    user's that its module has imported.

    Of modules those are numbers, texts, weights, lists, dicts, and functions and classes of the user's. Names that the function
    itself assigns to are what it remembers.
    """
    code: Any = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return
    for name, cell in zip(code.co_freevars, getattr(function, "__closure__", None) or (), strict=True):
        if _is_full(cell) and name not in _stored(code, "STORE_DEREF"):
            yield name, cell.cell_contents
    space, names = getattr(function, "__globals__", {}), sorted(_names(code) - _stored(code, "STORE_GLOBAL"))
    imported = {name: vars(space[name]) for name in names if inspect.ismodule(space.get(name)) and not _is_foreign(space[name])}
    for place, found in {"global": space, **imported}.items():
        for name in names:
            if name in found and _counts(found[name]):
                yield f"{place} {name}", found[name]


def _counts(value: Any) -> bool:
    """Say whether something that stands in a module is part of a reward that names it."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return not _is_foreign(value)
    return isinstance(value, (list, dict, set, Tensor, np.ndarray)) or not _may_change(value)


def _of_classes(owner: Any) -> dict[str, Any]:
    """Return the classes of the user's that an object's class inherits from, and those of the layers of a torch module, by text and
    by what their methods have from outside."""
    layers = [type(layer) for layer in owner.modules()] if isinstance(owner, nn.Module) else []
    kinds = dict.fromkeys(kind for one in (type(owner), *layers) for kind in one.__mro__ if not _is_foreign(kind))
    return {f"class {kind.__qualname__}": kind for kind in kinds}


def _outside_of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what the methods of a class have from outside."""
    for method in vars(kind).values():
        plain = getattr(method, "fget", None) or getattr(method, "__func__", method)  # of a property, a static method
        yield from _from_outside(inspect.unwrap(plain) if inspect.isfunction(plain) else plain)


def _attributes_assigned(kind: type) -> set[str]:
    """Return the attributes to which the methods of a class assign, apart from those that make an object."""
    methods = [named for one in kind.__mro__ if not _is_foreign(one) for named in vars(one).items()]
    working = [method for name, method in methods if name not in ("__init__", "__new__", "__post_init__")]
    codes = [code for one in working if isinstance(code := getattr(one, "__code__", None), CodeType)]
    names = set[str]().union(*(_stored(code, "STORE_ATTR") for code in codes))
    return names | {name.removeprefix("_") for name in names}


def _stored(code: CodeType, operation: str) -> set[str]:
    """Return the names to which a code, or that of a function within it, assigns by one of Python's operations."""
    every = (instruction for one in _with_inner(code) for instruction in dis.get_instructions(one))
    return {instruction.argval for instruction in every if instruction.opname == operation}


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    """Yield a code and those of the functions within it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _with_inner(one)


def _names(code: CodeType) -> set[str]:
    """Return the names that a function's code, and that of functions within it, looks up."""
    return {name for one in _with_inner(code) for name in one.co_names}


def _kept(owner: Any) -> dict[str, Any]:
    """Return the constructor arguments that an instance keeps under their names, with or without an underscore."""
    names = getattr(signature_of(type(owner)), "parameters", {})
    slots = {slot for kind in type(owner).__mro__ for slot in _listed(vars(kind).get("__slots__", ()))}
    there = dict(getattr(owner, "__dict__", {})) | {slot: getattr(owner, slot) for slot in slots if hasattr(owner, slot)}
    return {name: there[key] for name in names for key in (name, f"_{name}") if key in there}


def _listed(slots: Any) -> Any:
    return (slots,) if isinstance(slots, str) else slots


def _may_change(value: Any) -> bool:
    """Say whether a value is of a kind in which a reward may put what it remembers."""
    if isinstance(value, (tuple, frozenset)):
        return any(map(_may_change, value))
    return not (isinstance(value, _FIXED) or inspect.isroutine(value) or inspect.isclass(value))


def _described(value: Any, within: tuple[int, ...] = (), *, settled: bool = False) -> Any:
    """Return a value as JSON: plain values themselves, weights and pictures a digest, and of objects what they were made with.

    Args:
        within: the identities of the objects that the value is in.
        settled: of what a reward may change while it works, give the type alone.
    """
    kind = type(value).__qualname__
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, enum.Enum):
        return f"{kind}.{value.name}"
    if isinstance(value, np.generic) and type(item := value.item()) in (bool, int, float, str):
        return item
    if isinstance(value, bytes):
        return digests.of_bytes(value)
    if isinstance(value, (*_PLAIN, np.generic)):
        return f"{kind} {value!r}"
    if isinstance(value, re.Pattern):
        return [kind, str(value.pattern), value.flags]
    if isinstance(value, Image.Image):
        return [kind, value.mode, value.size, digests.of_bytes(value.tobytes())]
    if isinstance(value, nn.Module):
        return [kind, _weights(dict(value.named_parameters()) | ({} if settled else dict(value.named_buffers())))]
    if (settled and _may_change(value)) or id(value) in within or len(within) == _DEEPEST:
        return kind
    if isinstance(value, (Tensor, np.ndarray)):
        return [kind, _weights({"": value})]
    within = (*within, id(value))

    def each(values: Iterable[Any]) -> list[Any]:
        return [_described(one, within, settled=settled) for one in values]

    def inside(values: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        return {str(name): _described(one, within, settled=settled) for name, one in values}

    if inspect.isroutine(value) or inspect.isclass(value):
        if _is_foreign(value):
            return value.__qualname__
        outside = _outside_of_class(value) if inspect.isclass(value) else _from_outside(value)
        bound = getattr(value, "__self__", None)  # of a method, its object
        return [value.__qualname__, own_text(value), inside(outside), *each([] if bound is None else [bound])]
    if isinstance(value, Mapping):
        return inside(sorted(value.items(), key=lambda one: str(one[0])))
    if isinstance(value, Set):
        return sorted(each(value), key=repr)
    if isinstance(value, (list, tuple)):
        return each(value)
    if isinstance(value, functools.partial):
        return each((value.func, value.args, value.keywords))
    if dataclasses.is_dataclass(value):
        return [kind, inside((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))]
    return kind if _is_foreign(type(value)) else [kind, inside(_kept(value).items())]


def _is_foreign(thing: Any) -> bool:
    """Say whether a function or class is of something installed, or of Python itself."""
    try:
        return is_installed(Path(inspect.getfile(inspect.unwrap(thing))))
    except (OSError, TypeError):  # of no file
        return getattr(thing, "__module__", None) != "__main__"


def _weights(tensors: Mapping[str, Tensor | np.ndarray]) -> str:
    """Return the digest of weights; of what has no elements to be read, their shape."""
    try:
        return digests.of_some_elements((name, _as_tensor(one)) for name, one in tensors.items())
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # on no device, or of no plain precision
        return str([(name, list(one.shape)) for name, one in tensors.items()])


def _as_tensor(value: Tensor | np.ndarray) -> Tensor:
    """Return a tensor as it is, and of an array a tensor of its type, its shape and its bytes."""
    if isinstance(value, Tensor):
        return value
    held = repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
    return torch.frombuffer(bytearray(f"{value.dtype} {value.shape}\n".encode() + held), dtype=torch.uint8)


def _is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (it raises where there is nothing yet)
    except ValueError:
        return False
    return True
