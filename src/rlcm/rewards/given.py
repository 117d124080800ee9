"""Rewards as Python passes them: functions, names, and mixes of both with weights."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from pydantic import ValidationError

from rlcm.errors import ConfigError
from rlcm.rewards.build import build_reward
from rlcm.rewards.composition import RewardMix, RewardPart
from rlcm.rewards.settings import TIMEOUT_SECONDS, RewardSettings
from rlcm.rewards.user import check_signature, first_problems

OneReward: TypeAlias = Callable[..., Any] | str | RewardSettings | Mapping[str, Any]
"""A function of images and prompts, a name as in the setting `rewards`, or an entry of it."""
Rewards: TypeAlias = OneReward | Sequence[OneReward] | Mapping[Any, float]
"""One reward, several that are summed, or rewards with their weights."""

FORMS = (
    "a function of images and prompts, a name such as 'alignment', a list of them, or weights such as "
    "{function: 1, 'alignment': 0.5}"
)


class Given(NamedTuple):
    """One reward that was passed."""

    settings: RewardSettings
    """Its entry in the configuration; of an object, a name under which it may be found again."""
    reward: Callable[..., Any] | None
    """The object, where it is one."""


def given(rewards: Any) -> list[Given]:
    """Return the rewards that were passed, in order, each with its entry.

    The label of a function is its name; the second of one name is `name-2`. A time limit is an attribute `timeout_seconds`.

    Raises:
        ConfigError: if something is no reward, or a weight is no finite number.
    """
    if isinstance(rewards, Mapping) and "name" not in rewards:
        pairs: list[tuple[Any, float | None]] = [(reward, _weight(reward, weight)) for reward, weight in rewards.items()]
    elif isinstance(rewards, Sequence) and not isinstance(rewards, str):
        pairs = [(reward, None) for reward in rewards]
    else:
        pairs = [(rewards, None)]
    if not pairs:
        raise ConfigError(f"rewards={rewards!r} holds no reward; give {FORMS}.")
    found: list[Given] = []
    for reward, weight in pairs:
        one = reward if isinstance(reward, Given) else _given(reward)
        change: dict[str, Any] = {} if weight is None else {"weight": weight}
        taken = sum(before.settings.label.split("-")[0] == one.settings.label for before in found)
        if taken and one.reward is not None and not isinstance(reward, Given):
            change["label"] = f"{one.settings.label}-{taken + 1}"
        found.append(one._replace(settings=one.settings.model_copy(update=change)) if change else one)
    labels = [one.settings.label for one in found]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"two rewards are labelled {', '.join(twice)}; give each its own name, or an entry with a `label`.")
    return found


def mix_of(rewards: Any) -> RewardMix:
    """Return the mix of the rewards that were passed; see `given`."""
    passed = given(rewards)
    if not any(settings.weight for settings, _ in passed):
        raise ConfigError("rewards: all weights are 0, so there is nothing to learn; give one of them a weight, such as 1.")
    return RewardMix(
        [
            RewardPart(
                s.label, build_reward(s) if reward is None else reward, s.weight, s.normalise, s.on_failure, s.timeout_seconds
            )
            for s, reward in passed
        ]
    )


def _given(reward: Any) -> Given:
    if isinstance(reward, RewardSettings):
        return Given(reward, None)
    if isinstance(reward, (str, Mapping)):
        try:
            return Given(RewardSettings.model_validate(reward), None)
        except ValidationError as error:
            raise ConfigError(f"rewards={reward!r}: {first_problems(error)}.") from None
    if inspect.isclass(reward):
        raise ConfigError(f"rewards={reward.__name__} is a class; give an object of it, such as rewards={reward.__name__}().")
    if not callable(reward):
        raise ConfigError(f"rewards={reward!r} is no reward, but a {type(reward).__name__}; give {FORMS}.")
    check_signature(reward)
    function = reward.func if isinstance(reward, functools.partial) else reward
    label = getattr(function, "__name__", type(function).__name__)
    limit = getattr(reward, "timeout_seconds", TIMEOUT_SECONDS)
    return Given(RewardSettings.model_construct(name=place_of(reward), label=label, timeout_seconds=limit), reward)


def place_of(reward: Callable[..., Any]) -> str:
    """Return the name under which an object may be found again."""
    function = getattr(reward, "__qualname__", None)
    return f"{reward.__module__ or '<exec>'}:{function or type(reward).__qualname__ + '()'}"


def _is_finite(number: numbers.Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def _weight(reward: Any, weight: Any) -> float:
    if getattr(weight, "shape", None) == () and hasattr(weight, "item"):  # of NumPy or torch
        weight = weight.item()
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not _is_finite(weight):
        name = reward if isinstance(reward, str) else getattr(reward, "__name__", repr(reward))
        raise ConfigError(f"rewards: the weight of {name} is {weight!r}; give a finite number.")
    return float(weight)
