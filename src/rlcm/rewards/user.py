"""Rewards that users write: how they are made and called."""

from __future__ import annotations

import copy
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

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
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        fitting = {key: value for key, value in args.items() if takes_any or _takes_by_name(signature, key)}
        form = None if inspect.isclass(target) else form_of(functools.partial(target, **fitting))
        places, named = ([], {}) if form is None else _filled(form)
        try:
            signature.bind_partial(*places)
        except TypeError as error:
            raise ConfigError(f"rewards.{label}: {not_callable(target)}") from error
        if places and _takes_no_images_first(signature):
            raise ConfigError(f"rewards.{label}: {not_callable(target)}")
        try:
            signature.bind(*places, **{**named, **args})
        except TypeError as error:
            known = [key for key in list(signature.parameters)[len(places) :] if key not in named and key not in PROMPTS]
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
    own = {key: value for key, value in getattr(target, "__dict__", {}).items() if key != "__wrapped__"}
    bound.__dict__.update(own)  # keeps the mark `differentiable`
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
        return inspect.signature(target.forward if isinstance(target, nn.Module) else target)
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


PROMPTS = ("prompts", "prompt", "texts", "text", "captions", "caption")
"""Names of parameters that get the prompts wherever they stand."""


class Form(NamedTuple):
    """What a reward is called with beside the images, which come first."""

    prompts: str | None
    """SECOND: as the second argument; else the name of the parameter that gets them, or None."""
    metadata: Literal["third", "named", "no"]


SECOND = "second argument"


def form_of(reward: Callable[..., Any]) -> Form:
    """Return how a reward is called.

    The prompts are its second argument. They are passed by name where a parameter of PROMPTS stands elsewhere, and not at all where
    there is no place for them: one positional parameter, or a second one of another name that has a default with something in it,
    which is an option. It gets the prompts' metadata if it has a parameter named `metadata`, or a third positional one without a
    default.
    """
    signature = signature_of(reward)
    if signature is None:
        return Form(SECOND, "no")
    bound, inner = dict[str, Any](), reward
    while isinstance(inner, functools.partial):
        bound, inner = inner.keywords | bound, inner.func
    parameters = {name: p for name, p in signature.parameters.items() if name not in bound}
    places = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    metadata: Literal["third", "named", "no"] = "no"
    if "metadata" in parameters:
        metadata = "named" if _takes_by_name(signature, "metadata") else "third"
    elif len(places) > 2 and places[2].default is inspect.Parameter.empty and places[2].name not in PROMPTS:
        metadata = "third"
    by_name = [n for n in PROMPTS if n in parameters and parameters[n] not in places[:2] and _takes_by_name(signature, n)]
    if by_name:
        return Form(by_name[0], metadata)
    others = [p for p in places if p.name != "metadata"]
    if len(others) > 1 and others[1].name not in PROMPTS and not _is_open(others[1].default):
        return Form(None, metadata)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return Form(SECOND, metadata)
    return Form(SECOND if len(others) > 1 else None, metadata)


def _is_open(default: Any) -> bool:
    """Return whether a default has nothing in it, or there is none."""
    return default is inspect.Parameter.empty or default is None or (isinstance(default, (str, list, tuple)) and not default)


def _filled(form: Form, images: Any = None, prompts: Any = None, metadata: Any = None) -> tuple[list[Any], dict[str, Any]]:
    """Return what a reward of this form is called with: by their places, and by their names."""
    places, named = [images], {}
    if form.prompts == SECOND:
        places.append(prompts)
    elif form.prompts is not None:
        named[form.prompts] = prompts
    if form.metadata == "third":
        places.append(metadata)
    elif form.metadata == "named":
        named["metadata"] = metadata
    return places, named


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
    """Refuse what cannot be called as `form_of` says.

    Raises:
        ConfigError: if it cannot.
    """
    signature = signature_of(reward)
    if signature is None:
        return
    places, named = _filled(form_of(reward))
    try:
        signature.bind(*places, **named)
    except TypeError as error:
        raise ConfigError(f"{setting}: {not_callable(reward)}") from error
    if _takes_no_images_first(signature):
        raise ConfigError(f"{setting}: {not_callable(reward)}")


def _takes_by_name(signature: inspect.Signature, name: str) -> bool:
    parameter = signature.parameters.get(name)
    return parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY


def _takes_no_images_first(signature: inspect.Signature) -> bool:
    """Return whether a first parameter is another one by its name; that of a method that was named without an object is `self`."""
    return next(iter(signature.parameters), "") in ("prompt", "prompts", "self")


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
    form = form_of(reward)
    told = None
    if form.metadata != "no":
        told = copy.deepcopy([dict(entry) for entry in metadata]) if metadata is not None else [{} for _ in prompts]
    places, named = _filled(form, images, list(prompts), told)
    answer = reward(*places, **named)
    return event_loop().wait(answer) if inspect.isawaitable(answer) else answer
