"""Rewards that users write: how they are made and called."""

from __future__ import annotations

import copy
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from torch import Tensor

from rlcm.errors import ConfigError
from rlcm.rewards.boundary import UserCode, UserCodeError
from rlcm.rewards.coroutines import event_loop
from rlcm.rewards.settings import TIMEOUT_SECONDS
from rlcm.settings import as_declared

AnyReward = Callable[..., Any]


def bind_arguments(
    label: str, target: Callable[..., Any], args: Mapping[str, Any], timeout_seconds: float = TIMEOUT_SECONDS
) -> AnyReward:
    """Return a reward from what an import path names and the setting `args`.

    A class is instantiated with `args`; a function gets them as keyword arguments of every call.

    Args:
        timeout_seconds: how long the class may take.

    Raises:
        ConfigError: if an argument is unknown, missing, or refused by the class, or if the class raises.
    """
    signature, bound = signature_of(target), functools.partial(target, **args)
    if signature is not None:
        given: list[Any] = []
        if not inspect.isclass(target):
            given = [None] if takes_images_alone(bound) else [None, None]
        named: dict[str, Any] = dict(args)
        if given and _takes_by_name(signature, "metadata"):
            named["metadata"] = None
        elif given and takes_metadata(bound):
            given.append(None)
        try:
            signature.bind_partial(*given)
        except TypeError as error:
            raise ConfigError(f"rewards.{label}: {not_callable(target)}") from error
        if given and _takes_no_images_first(signature):
            raise ConfigError(f"rewards.{label}: {not_callable(target)}")
        try:
            signature.bind(*given, **named)
        except TypeError as error:
            known = [key for key in list(signature.parameters)[len(given) :] if key != "metadata"]
            raise ConfigError(
                f"rewards.{label}.args={_given(args)} does not fit ({error}); it takes {', '.join(known) or 'no arguments'}."
            ) from error
    if inspect.isclass(target):
        setting = f"rewards.{label}.args={_given(args)}"
        if target.__module__.partition(".")[0] == __name__.partition(".")[0]:
            _check_own(setting, target, args)
        try:
            made = UserCode(f"reward {label}", timeout_seconds).run(lambda: target(**args))
        except UserCodeError as error:
            cause = error.__cause__
            if isinstance(cause, ValidationError):
                remedy = f"`rlcm rewards list {label}` tells what it takes"
                raise ConfigError(f"{setting}: {first_problems(cause)}; {remedy}.") from cause
            if isinstance(cause, (ValueError, TypeError)):
                raise ConfigError(f"{setting}: {cause}") from cause
            raise ConfigError(f"{setting}: {target.__name__} {error}.") from cause
        if not callable(made):
            raise ConfigError(f"rewards.{label}: {target.__name__} has no __call__(images, prompts), so it is no reward.")
        check_signature(made, f"rewards.{label}")
        return made
    if not args:
        return target
    bound.__dict__.update(getattr(target, "__dict__", {}))  # keeps the mark `differentiable`
    return bound


def _check_own(setting: str, target: type, args: Mapping[str, Any]) -> None:
    """Refuse a text or a truth value in place of a number, and the other way round, in the arguments of a built-in reward."""
    hints = typing.get_type_hints(target.__init__)  # type: ignore[misc]
    for name, value in args.items():
        try:
            as_declared(hints.get(name, Any), value)
        except PydanticCustomError as error:
            raise ConfigError(f"{setting}: {name}={value!r}: {error.message()}.") from None
        if hints.get(name) is int and isinstance(value, float):
            raise ConfigError(f"{setting}: {name}={value!r}: input should be a whole number.")


def signature_of(target: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of a callable; None of one that has none to look at, such as one written in C."""
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


def _given(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as the user gave them: `on_failure` is passed on from the reward's own settings."""
    return {key: value for key, value in args.items() if key != "on_failure"}


def first_problems(error: ValidationError) -> str:
    """Return what is wrong with settings in one line, each problem after its key, without pydantic's own words around it."""
    found = []
    for detail in error.errors():
        message = detail["msg"].removeprefix("Value error, ").removesuffix(".")
        found.append(": ".join([*filter(None, [".".join(map(str, detail["loc"]))]), message[0].lower() + message[1:]]))
    return "; ".join(found)


def takes_metadata(reward: Callable[..., Any]) -> bool:
    """Return whether a reward wants the prompts' metadata.

    It does if it has a parameter named `metadata`, or a third positional one without a default.
    """
    signature = signature_of(reward)
    if signature is None:
        return False
    parameters = list(signature.parameters.values())
    if any(parameter.name == "metadata" for parameter in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 and positional[2].default is inspect.Parameter.empty


def not_callable(reward: Callable[..., Any]) -> str:
    """Return what to say of a function that cannot be called as a reward, and how to write it."""
    inner = reward
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", type(inner).__name__)
    written = f"{name}(" if hasattr(inner, "__name__") else "__call__(self, "
    return (
        f"{name}{signature_of(reward)} cannot be called with pictures and prompts; write it as def {written}images, prompts), with "
        "metadata as a third argument if it wants them."
    )


def check_signature(reward: Callable[..., Any], setting: str = "rewards") -> None:
    """Refuse what cannot be called with pictures and prompts, or with pictures alone; metadata come by name or third.

    Raises:
        ConfigError: if it cannot.
    """
    signature = signature_of(reward)
    if signature is None:
        return
    named: dict[str, Any] = {"metadata": []} if _takes_by_name(signature, "metadata") else {}
    places: list[list[Any]] = [[None], [None, []]] if takes_images_alone(reward) else [[None, []], [None, [], []]]
    if _takes_no_images_first(signature) or not any(_binds(signature, place, named) for place in places):
        raise ConfigError(f"{setting}: {not_callable(reward)}")


def _takes_by_name(signature: inspect.Signature, name: str) -> bool:
    parameter = signature.parameters.get(name)
    return parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY


def _takes_no_images_first(signature: inspect.Signature) -> bool:
    """Return whether a first parameter is another one by its name; that of a method that was named without an object is `self`."""
    return next(iter(signature.parameters), "") in ("prompt", "prompts", "self")


def _binds(signature: inspect.Signature, given: Sequence[Any], named: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*given, **named)
    except TypeError:
        return False
    return True


def takes_images_alone(reward: Callable[..., Any]) -> bool:
    """Return whether a reward has one positional parameter, for the images, and no place for the prompts."""
    signature = signature_of(reward)
    if signature is None:
        return False
    kinds = [p.kind for p in signature.parameters.values() if p.name != "metadata"]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Parameter.VAR_POSITIONAL not in kinds and sum(kind in positional for kind in kinds) == 1


def call_reward(
    reward: AnyReward, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
) -> Any:
    """Return a reward's answer as it gave it, waiting for it if the function is async.

    It runs in the caller's thread; `rlcm.rewards.composition` calls rewards within the boundary of `rlcm.rewards.boundary`.

    Args:
        images: [B, 3, h, w] float RGB in [0, 1].
        prompts: B texts.
        metadata: B dicts, or None; a reward that takes metadata then gets empty ones.
    """
    arguments: list[Any] = [images] if takes_images_alone(reward) else [images, list(prompts)]
    named: dict[str, Any] = {}
    if takes_metadata(reward):
        given = copy.deepcopy([dict(entry) for entry in metadata]) if metadata is not None else [{} for _ in prompts]
        if _takes_by_name(inspect.signature(reward), "metadata"):
            named["metadata"] = given
        else:
            arguments.append(given)
    answer = reward(*arguments, **named)
    return event_loop().wait(answer) if inspect.isawaitable(answer) else answer
