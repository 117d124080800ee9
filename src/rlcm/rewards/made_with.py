"""What a reward that is a Python object was made with: values, weights and helpers that its own text does not show."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import inspect
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
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    enum.Enum,
    np.generic,
    range,
    PurePath,
    datetime.date,
    datetime.time,
)
_WEIGHTS = (Tensor, np.ndarray, nn.Module)
_FIXED = (*_PLAIN, *_WEIGHTS, Image.Image)
_FIRST_SEEN: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""What stood in lists, dicts and objects of a reward when this process first looked: what came later, it may have put there itself."""


def made_with(reward: Callable[..., Any]) -> Any:
    """Return what a reward was made with, as JSON; None where there is nothing.

    That is: arguments of a partial; constructor arguments that an instance keeps under their names; weights of a torch module; what
    an inner function has from the outer one; values, weights and helpers of its program that a function names. Numbers and texts
    count as they are, weights by a digest, and lists, dicts and objects by what is in them.

    What a reward counts or remembers while it works is none of them. So within a process lists, dicts and objects count as they were
    when it was first seen.
    """
    found: list[Any] = []
    while isinstance(reward, functools.partial):
        found.append([_described(reward.args), _described(reward.keywords)])
        reward = reward.func
    reward = inspect.unwrap(reward)
    owner: Any = getattr(reward, "__self__", reward)
    named = dict(_from_outside(reward))
    if is_object := not (inspect.isroutine(owner) or inspect.isclass(owner) or inspect.ismodule(owner)):
        named |= _kept(owner) | _of_classes(owner)
    changing = {name: _described(value) for name, value in named.items() if _may_change(value)}
    fixed = {name: _described(value) for name, value in named.items() if not _may_change(value)}
    if isinstance(owner, nn.Module):
        parameters = dict(owner.named_parameters())
        known = _first_seen(owner, "names of weights", {"": list(parameters)})[""]  # others were loaded while it worked
        fixed["weights"] = _weights({name: parameters[name] for name in known if name in parameters})
        changing["buffers"] = _weights(dict(owner.named_buffers()))
    if named or is_object:
        found.append(fixed | _first_seen(owner, getattr(reward, "__qualname__", ""), changing))
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

    Of modules those are numbers, texts, weights, lists, dicts, and functions and classes of the user's.
    """
    code: Any = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return
    for name, cell in zip(code.co_freevars, getattr(function, "__closure__", None) or (), strict=True):
        if _is_full(cell):
            yield name, cell.cell_contents
    space, names = getattr(function, "__globals__", {}), sorted(_names(code))
    imported = {name: vars(space[name]) for name in names if inspect.ismodule(space.get(name)) and not _is_foreign(space[name])}
    for place, found in {"global": space, **imported}.items():
        for name in names:
            if name in found and _counts(found[name]):
                yield f"{place} {name}", found[name]


def _counts(value: Any) -> bool:
    """Say whether something that stands in a module is part of a reward that names it."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return not _is_foreign(value)
    return isinstance(value, (list, dict, set)) or not _may_change(value)


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


def _names(code: CodeType) -> set[str]:
    """Return the names that a function's code, and that of functions within it, looks up."""
    inner = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inner)


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


def _described(value: Any, within: tuple[int, ...] = ()) -> Any:
    """Return a value as JSON: plain values themselves, weights and pictures a digest, and of objects what they were made with.

    Args:
        within: the identities of the objects that the value is in.
    """
    kind = type(value).__qualname__
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, enum.Enum):
        return f"{kind}.{value.name}"
    if isinstance(value, np.generic):
        return _described(value.item())
    if isinstance(value, bytes):
        return digests.of_bytes(value)
    if isinstance(value, _PLAIN):
        return f"{kind} {value!r}"
    if isinstance(value, Image.Image):
        return [kind, value.mode, value.size, digests.of_bytes(value.tobytes())]
    if isinstance(value, _WEIGHTS):
        tensors = dict(value.named_parameters()) | dict(value.named_buffers()) if isinstance(value, nn.Module) else {"": value}
        return [kind, _weights(tensors)]
    if id(value) in within or len(within) == _DEEPEST:
        return kind
    within = (*within, id(value))

    def inside(values: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        return {str(name): _described(one, within) for name, one in values}

    if inspect.isroutine(value) or inspect.isclass(value):
        if _is_foreign(value):
            return value.__qualname__
        outside = _outside_of_class(value) if inspect.isclass(value) else _from_outside(value)
        return [value.__qualname__, own_text(value), inside(outside)]
    if isinstance(value, Mapping):
        return inside(sorted(value.items(), key=lambda one: str(one[0])))
    if isinstance(value, Set):
        return sorted((_described(one, within) for one in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [_described(one, within) for one in value]
    if isinstance(value, functools.partial):
        return [_described(part, within) for part in (value.func, value.args, value.keywords)]
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
