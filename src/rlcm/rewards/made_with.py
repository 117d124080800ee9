"""What a reward that is a Python object was made with: values, weights and helpers that its own text does not show."""

from __future__ import annotations

import argparse
import array
import dataclasses
import enum
import functools
import inspect
import json
import os
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rlcm.rewards.outside import PLAIN, OfModule, attributes_assigned, from_outside, is_foreign, outside_of_class, unwrapped
from rlcm.rewards.sources import own_text
from rlcm.rewards.user import signature_of
from rlcm.runs import digests

_DEEPEST = 12
_LARGEST = 2**63
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_DEVICE = re.compile(r"\b(cuda|xpu|npu|hip|mps):\d+")


class Made(NamedTuple):
    """What a reward was made with, as JSON; None where there is nothing."""

    arguments: Any
    """Plain arguments of a partial or a constructor, and the weights of a torch module: they are compared within a process, too."""
    rest: Any
    """All other values, functions and classes, as they were when this process first saw the object."""


_FIRST_SEEN: dict[int, tuple[Callable[[], Any], dict[str, Any]]] = {}
"""By the identity of an object: how to get it if it is still there, and what of it was first seen."""
_OF_MODULES: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}
"""By the identity of a module's names: these names, and what stood in lists, dicts and objects when this process first looked."""


def made_with(reward: Callable[..., Any]) -> Made:
    """Return what a reward was made with.

    That is: arguments of a partial or a function's defaults; constructor arguments that an instance keeps under their names; weights
    of a torch module; base classes; what an inner function has from the outer one; and values, functions and classes of the user's
    modules that it names. Numbers and texts count as they are, weights by a digest, lists, dicts and objects by what is in them. The
    number of a device does not count.

    What a reward counts or remembers while it works is none of them: names that it assigns to itself do not count, and within a
    process an object stays what it was when it was first seen, but for its plain arguments and weights.
    """
    try:
        return Made(_arguments(reward), _rest(reward))
    except Exception:  # of a proxy whose attributes raise nothing can be compared
        return Made(None, None)


def _parts(reward: Any) -> tuple[list[functools.partial[Any]], Any, Any]:
    """Return the partials that a reward is made of, outermost first, what they call, and whose method that is, if it is one's."""
    partials = []
    while isinstance(reward, functools.partial):
        partials.append(reward)
        reward = reward.func
    return partials, reward, getattr(reward, "__self__", reward)


def _is_object(owner: Any) -> bool:
    return not (inspect.isroutine(owner) or inspect.isclass(owner) or inspect.ismodule(owner))


def _rest(reward: Any) -> Any:
    partials, inner, owner = _parts(reward)
    return _first_seen(reward if partials else owner, getattr(inner, "__qualname__", ""), lambda: _Telling().reward(reward))


def _arguments(reward: Any) -> dict[str, Any] | None:
    """Return plain arguments of a partial or a constructor, and the weights of a torch module."""
    told = _Telling()
    arguments: dict[str, Any] = {}
    partials, _, owner = _parts(reward)
    for one in partials:
        plain = {str(place): value for place, value in enumerate(one.args)} | one.keywords
        arguments |= {f"partial {name}": told.of(value) for name, value in plain.items() if _is_plain(value)}
    if _is_object(owner):
        assigned = attributes_assigned(type(owner))
        kept = {name: value for name, value in _kept(owner).items() if name not in assigned and _is_plain(value)}
        arguments |= {name: told.of(value) for name, value in kept.items()}
    if isinstance(owner, nn.Module):
        weights = {name: one for name, one in _parameters(owner).items() if not nn.parameter.is_lazy(one)}
        known = _first_seen(owner, "names of weights", lambda: list(weights))  # others were loaded while it worked
        arguments["its weights"] = _weights({name: weights[name] for name in known if name in weights})
    return arguments or None


def _first_seen(thing: Any, name: str, look: Callable[[], Any]) -> Any:
    """Return what a look at an object gave when this process first looked."""
    there = _FIRST_SEEN.get(id(thing))
    if there is None or there[0]() is not thing:
        try:
            held: Callable[[], Any] = weakref.ref(thing)
        except TypeError:  # it cannot be referred to weakly

            def held() -> Any:
                return thing

        there = _FIRST_SEEN[id(thing)] = (held, {})
    if name not in there[1]:
        there[1][name] = look()
    return there[1][name]


class _Telling:
    """Tells of values as JSON: every function and class once, whatever stands around it."""

    def __init__(self) -> None:
        self.known: set[Any] = set()
        self.within: list[Any] = []
        self.depth = 0

    def reward(self, reward: Any) -> Any:
        """Return all that a reward was made with; None where there is nothing."""
        partials, inner, owner = _parts(reward)
        found: list[Any] = [[self.of(one.args), self.of(one.keywords)] for one in partials]
        named = dict(from_outside(inner))
        if _is_object(owner):
            layers = [type(layer) for layer in owner.modules()] if isinstance(owner, nn.Module) else []
            kinds = dict.fromkeys(kind for one in (type(owner), *layers) for kind in one.__mro__ if not is_foreign(kind))
            named |= _kept(owner) | {f"class {kind.__qualname__}": kind for kind in kinds}
        if named:
            found.append(self.inside(named.items()))
        if isinstance(owner, nn.Module):
            found.append([_layers(owner), _weights(dict(owner.named_buffers()))])
        if isinstance(owner, (tuple, list, dict)):
            found.append(self._held(owner, type(owner).__qualname__))
        return found or None

    def of(self, value: Any) -> Any:
        """Return a value as JSON: plain ones themselves, weights and pictures a digest, and of objects what they were made with.

        Of what cannot be looked at, the type alone.
        """
        self.depth += 1
        try:
            return self._of(value) if self.depth < _DEEPEST else type(value).__qualname__
        except Exception:
            return type(value).__qualname__
        finally:
            self.depth -= 1

    def inside(self, values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        """Return named values."""
        return {name: self.of(one) for name, one in values}

    def _of(self, value: Any) -> Any:
        if isinstance(value, OfModule):
            return _first_of_module(value)
        kind = type(value).__qualname__
        if isinstance(value, enum.Enum):
            return f"{kind}.{value.name}"
        if isinstance(value, np.generic) and not isinstance(item := value.item(), np.generic):
            value = item
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < _LARGEST else hex(value)
        if isinstance(value, (str, torch.device)):
            return _DEVICE.sub(r"\1", str(value))
        if isinstance(value, (bytes, bytearray, memoryview, array.array)):
            return digests.of_bytes(bytes(value))
        if isinstance(value, PLAIN):
            return f"{kind} {value!r}"
        if isinstance(value, re.Pattern):
            return [kind, str(value.pattern), value.flags]
        if isinstance(value, Image.Image):
            return [kind, value.mode, value.size, digests.of_bytes(value.tobytes())]
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return [kind, list(value.shape), [self.of(one) for one in value.reshape(-1)]]
        if isinstance(value, (Tensor, np.ndarray)):
            return [kind, _weights({"": value})]
        if isinstance(value, nn.Module):
            return [kind, _layers(value), _weights(_parameters(value) | dict(value.named_buffers()))]
        if inspect.isroutine(value) or inspect.isclass(value) or hasattr(value, "__wrapped__"):
            return self._code(value)
        if value is os.environ or isinstance(value, ModuleType) or any(value is one for one in self.within):
            return kind
        self.within.append(value)
        try:
            return self._held(value, kind)
        finally:
            self.within.pop()

    def _held(self, value: Any, kind: str) -> Any:
        """Return what is in a container or an object."""
        if isinstance(value, Mapping):
            return self.inside(sorted(((self._key(name), one) for name, one in value.items()), key=lambda entry: entry[0]))
        if isinstance(value, Set):
            return sorted((self.of(one) for one in value), key=json.dumps)
        if isinstance(value, (list, tuple, deque)):
            return [self.of(one) for one in value]
        if isinstance(value, (SimpleNamespace, argparse.Namespace)):
            return [kind, self.inside(vars(value).items())]
        if isinstance(value, functools.partial):
            return [self.of(part) for part in (value.func, value.args, value.keywords)]
        if dataclasses.is_dataclass(value):
            fields = {field.name: vars(value).get(field.name) for field in dataclasses.fields(value)}
            return [kind, self.inside(fields.items())]
        return kind if is_foreign(type(value)) else [kind, self.inside(_kept(value).items()), self.of(type(value))]

    def _key(self, name: Any) -> str:
        return name if isinstance(name, str) else json.dumps(self.of(name))

    def _code(self, value: Any) -> Any:
        """Return the text of a function or class of the user's, and what it has from outside; of others the name."""
        plain = unwrapped(value)[-1]
        name = getattr(plain, "__qualname__", type(value).__qualname__)
        if is_foreign(plain) or value in self.known:
            return name
        self.known.add(value)
        bound = getattr(value, "__self__", None)  # of a method, its object
        outside = outside_of_class(plain) if inspect.isclass(plain) else from_outside(value)
        told = [] if bound is None or inspect.ismodule(bound) else [self.of(bound)]
        return [name, own_text(plain), self.inside(outside), *told]


def _first_of_module(thing: OfModule) -> Any:
    """Return what stood in a module's list, dict or object when this process first looked."""
    first = _OF_MODULES.setdefault(id(thing.space), (thing.space, {}))[1]
    if thing.name not in first:
        first[thing.name] = type(thing.value).__qualname__  # where it leads back to itself
        first[thing.name] = _Telling().of(thing.value)
    return first[thing.name]


def _kept(owner: Any) -> dict[str, Any]:
    """Return the constructor arguments, of its class or of one that this inherits from, that an instance keeps under their names,
    with or without underscores; of a class that takes any named arguments all that it keeps."""
    kinds = [kind for kind in type(owner).__mro__ if kind is type(owner) or not is_foreign(kind)]
    parameters = [one for kind in kinds for one in getattr(signature_of(kind), "parameters", {}).values()]
    there = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    for kind in type(owner).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(owner, slot):
                there[slot] = getattr(owner, slot)
    own = {re.sub(rf"^_{kind.__name__.lstrip('_')}__", "__", key): value for kind in kinds for key, value in there.items()}
    names = dict.fromkeys(one.name for one in parameters)
    if any(one.kind is one.VAR_KEYWORD for one in parameters) and not isinstance(owner, nn.Module):
        return {key.lstrip("_"): value for key, value in own.items()}
    return {name: own[key] for name in names for key in (name, f"_{name}", f"__{name}") if key in own}


def _is_plain(value: Any) -> bool:
    """Say whether a value is a number, a text or the like, or a tuple of such."""
    return all(map(_is_plain, value)) if isinstance(value, (tuple, frozenset)) else isinstance(value, PLAIN)


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def _layers(module: nn.Module) -> str:
    """Return the layers of a network and how they are set, without addresses in memory."""
    return digests.of_bytes(_ADDRESS.sub("", repr(module)).encode())


def _weights(tensors: Mapping[str, Tensor | np.ndarray]) -> str:
    """Return the digest of weights; of what has no elements to be read, its type."""
    try:
        return digests.of_some_elements(tensors.items())
    except Exception:
        return str([(name, type(one).__qualname__) for name, one in tensors.items()])
