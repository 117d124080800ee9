"""From the entries of the list `rewards:` to the mix a run learns from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlcm.errors import ConfigError
from rlcm.rewards.compose import RewardMix, RewardPart
from rlcm.rewards.settings import RewardSettings, is_address
from rlcm.rewards.user import bind_arguments, load_callable


class BuiltIn(NamedTuple):
    """A reward that is named by one word."""

    path: str
    """Where it is, imported only when a run uses it."""
    summary: str


BUILT_IN: dict[str, BuiltIn] = {
    "jpeg_compressibility": BuiltIn("rlcm.rewards.jpeg:Compressibility", "minus the size as a JPEG file, kB"),
    "jpeg_incompressibility": BuiltIn("rlcm.rewards.jpeg:Incompressibility", "the size as a JPEG file, kB"),
    "colourfulness": BuiltIn("rlcm.rewards.image:Colourfulness", "Hasler and Suesstrunk's measure; differentiable"),
    "sharpness": BuiltIn("rlcm.rewards.image:Sharpness", "variance of the Laplacian; differentiable"),
    "brightness": BuiltIn("rlcm.rewards.image:Brightness", "minus the distance of the mean luma from a target; differentiable"),
}


def build_reward(settings: RewardSettings) -> Callable[..., Any]:
    """Return the callable that one entry names.

    Raises:
        ConfigError: if there is no such reward, or its arguments do not fit.
        MissingFileError: if a file that it names is not there.
    """
    name = settings.name
    if is_address(name):
        client = load_callable("rlcm.rewards.http:HttpReward")
        return bind_arguments(settings.label, client, {"address": name, **settings.args, "on_failure": settings.on_failure})
    if ":" not in name and name not in BUILT_IN:
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the built-in ones are {', '.join(BUILT_IN)}."
        raise ConfigError(
            f"rewards: there is no reward {name!r}; {hint} Your own is module:function or path/to/file.py:function."
        )
    path = BUILT_IN[name].path if name in BUILT_IN else name
    return bind_arguments(settings.label, load_callable(path), settings.args)


def build_rewards(rewards: Sequence[RewardSettings]) -> RewardMix:
    """Return the mix of all entries. See `build_reward` for the errors."""
    return RewardMix([RewardPart(r.label, build_reward(r), r.weight, r.normalise, r.on_failure) for r in rewards])
