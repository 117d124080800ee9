"""Defaults that follow from other settings, and the short names that Python takes for the settings that most people change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcm.errors import ConfigError
from rlcm.learning.algorithm import FORWARD
from rlcm.settings import Settings, merge
from rlcm.yaml_text import meant

SHORT = {
    "rounds": "run.rounds",
    "minutes": "run.time_limit_minutes",
    "lr": "optimizer.lr",
    "steps": "sampler.steps",
    "guidance": "sampler.guidance",
    "branches": "rollout.branches",
    "batch_size": "rollout.batch_size",
    "rank": "lora.rank",
    "leash": "algorithm.kl_coefficient",
    "images": "evaluation.images",
}
"""What `rlcm.TrainConfig(rounds=20)` and `rlcm.train(rounds=20)` call by one word."""


def following(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a run with those added that others ask for, where they were left open.

    Without a leash (`algorithm.kl_coefficient` 0, or `algorithm.kl_target` null) there is no target to follow, and no pace that
    follows it. Rewards of single actions and the gradient of the reward take plain trajectories. Losses of finished images take
    what a search chose for them: a higher rate, and rounds of 64 images, four of each prompt.
    """
    found = dict(values)
    algorithm, rollout, optimizer = (_open(found.get(name, {})) for name in ("algorithm", "rollout", "optimizer"))
    if algorithm is None:
        return found
    unleashed = meant(algorithm.get("kl_coefficient", 1)) == 0 or meant(algorithm.get("kl_target", 1)) is None
    if unleashed and optimizer is not None and "max_pace" not in optimizer:
        found["optimizer"] = optimizer = {**optimizer, "max_pace": 1.0}
    loss = meant(algorithm.get("loss"))
    plain = loss == "reward_backprop" or meant(algorithm.get("dense_every", 0)) not in (0, None)
    if plain and rollout is not None and "branches" not in rollout:
        found["rollout"] = {**rollout, "branches": 1}
    if loss in FORWARD:
        if rollout is not None:
            size = meant(rollout.get("batch_size", 64))
            several = isinstance(size, int) and size % 4 == 0 and meant(rollout.get("branches", 1)) == 1
            found["rollout"] = {"batch_size": 64, **({"images_per_prompt": 4} if several else {}), "branches": 1, **rollout}
        if optimizer is not None:
            found["optimizer"] = {"lr": 3e-3} | optimizer
    return found


def without_following(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values without those that would follow from the others, so that other changes may change them."""
    found = {name: dict(group) if isinstance(group, Mapping) else group for name, group in given.items()}
    for name, key in _FOLLOWING:
        if key in found.get(name, {}):
            rest = {other: value for other, value in given[name].items() if other != key}
            follows = following({**given, name: rest})[name]
            if key in follows and follows[key] == given[name][key]:
                del found[name][key]
    algorithm = found.get("algorithm", {})
    if "kl_coefficient" in algorithm and not algorithm["kl_coefficient"] and algorithm.get("kl_target", 1) is None:
        del algorithm["kl_target"]
    return found


_FOLLOWING = (
    ("rollout", "branches"),
    ("rollout", "images_per_prompt"),
    ("rollout", "batch_size"),
    ("optimizer", "lr"),
    ("optimizer", "max_pace"),
)
"""What `following` may add."""


def spelt_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in which short names stand for settings, as nested values of the settings themselves.

    Raises:
        ConfigError: if a setting is given by both of its names.
    """
    found = {name: value for name, value in values.items() if name not in SHORT}
    for name in filter(values.__contains__, SHORT):
        group, _, key = SHORT[name].partition(".")
        there = found.get(group, {})
        if not isinstance(there, (Mapping, Settings)):
            continue  # which is wrong, and will be said
        given = there.model_dump(exclude_unset=True) if isinstance(there, Settings) else dict(there)
        if key in given:
            raise ConfigError(f"{name} is short for {SHORT[name]}, which is given, too; leave one of them out.")
        found[group] = given | {key: values[name]}
    return found


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with changes in the form of `TrainConfig(...)`; of a group's object, what was set in it counts.

    Raises:
        ConfigError: as `spelt_out`.
    """
    plain = {
        key: change.model_dump(exclude_unset=True) if isinstance(change, Settings) else change
        for key, change in spelt_out(changes).items()
    }
    return merge(values, plain)


def _open(group: Any) -> dict[str, Any] | None:
    """Return what was given of a group of settings; nothing where it is none, or all of it is settled."""
    if isinstance(group, Mapping):
        return dict(group)
    if isinstance(group, Settings):
        return group.model_dump(exclude_unset=True)
    return {} if group in (None, "") else None
