"""The form of a training, made from the configuration: a field for every setting, with its type, range and meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from rlcm.addresses import is_address
from rlcm.builtin import DEMO, PUBLISHED
from rlcm.errors import ConfigError
from rlcm.learning.algorithm import FORWARD
from rlcm.pipelines.settings import BUILTIN
from rlcm.report.values import finite, mapping
from rlcm.rewards import RewardSettings
from rlcm.rewards.build import BUILT_IN as REWARDS
from rlcm.rewards.build import build_reward
from rlcm.rewards.settings import entry_of
from rlcm.settings import alternatives, leaves
from rlcm.text_files import lines_of
from rlcm.training.config import TrainConfig, load_config, parse_settings
from rlcm.training.prompts import BUILT_IN as PROMPT_SETS
from rlcm.training.prompts import load_prompts
from rlcm.training.run_config import run_config
from rlcm.training.values import read_value
from rlcm.yaml_text import meant, write_yaml

Kind = Literal["whole", "number", "text", "choice", "switch", "yaml", "rewards", "names"]

PLAIN: dict[str, tuple[str, str]] = {
    "name": ("Name of the run", "Letters, digits, dots, dashes. Left empty: reward and date."),
    "model.path": ("Model", "Built in, a diffusers folder, or an id of the Hugging Face Hub."),
    "prompts": ("Prompts", "A built-in set, the path of a .txt, .jsonl or .json file, or a list such as [a fox, three frogs]."),
    "rewards": ("Rewards", "What is rewarded; several are summed. Type your own as module:function or file.py:function."),
    "run.rounds": ("Rounds", "How often it samples and learns."),
    "rollout.batch_size": ("Pictures a round", "More make each round slower and its step surer."),
    "rollout.branches": ("Branches", "Pictures that share the first steps; 1 is plain sampling."),
    "sampler.steps": ("Sampling steps", "Network calls for a picture."),
    "optimizer.lr": ("Learning rate", "Larger learns faster, and goes wrong sooner."),
    "algorithm.kl_coefficient": ("Leash", "How firmly it is held near the base model; 0 is off."),
    "evaluation.every": (
        "Evaluate every … rounds",
        "Rounds between evaluations on the fixed prompts and seeds; 0: before and after only.",
    ),
    "seed": ("Seed", "Of all noise and first weights."),
}
"""The settings that most people change, in the order of the form, in plain words."""
SUGGESTED: dict[str, Mapping[str, str]] = {
    "model.path": {name: name for name in BUILTIN},
    "prompts": {name: name for name in PROMPT_SETS},
    "rewards": {name: f"{name}: {reward.summary}" for name, reward in REWARDS.items()},
}
"""Values to choose from where others are allowed too."""
HIDDEN = ("output",)
"""Settings that the page itself decides."""
FOLLOWING = ("rollout.branches", "algorithm.kl_target", "optimizer.max_pace")
"""Settings that are left open where they are at their default, so that they follow from others; see `rlcm.training.defaults`."""
STARTS = {
    "*default": "The default: a policy gradient, for any reward",
    "*nft": "For a reward that is only right or wrong: DiffusionNFT",
    "*demo": "The demo: draw what was asked, in three to five minutes",
    "*published": "RLCM as published, with the paper's settings",
}
"""Configurations to start from, besides those of runs."""


@dataclass(frozen=True, slots=True)
class Field:
    """One setting as a field of a form."""

    key: str
    """Dotted, as on the command line."""
    kind: Kind
    label: str
    meaning: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False
    """May be left empty."""

    @property
    def group(self) -> str:
        """The group of settings that it belongs to; nothing for those at the top."""
        return self.key.rpartition(".")[0]

    @property
    def is_written(self) -> bool:
        """Whether it is a number that may be left out: entered as text, since a field for numbers has no way to be empty."""
        return self.optional and self.kind in ("whole", "number")

    @property
    def range(self) -> str:
        """The numbers that are allowed, as words; nothing where all of them are."""
        if self.minimum is None:
            return "" if self.maximum is None else f"Up to {_digits(self.maximum)}."
        least = _digits(self.minimum)
        return f"From {least}." if self.maximum is None else f"{least} to {_digits(self.maximum)}."

    def shown(self, value: Any) -> Any:
        """Return a value of the configuration (as JSON) as the field shows it."""
        if self.kind == "rewards":
            return [_short_reward(entry) for entry in value]
        if self.is_written:
            return "" if value is None else json.dumps(value)
        if self.kind in ("yaml", "names"):
            if value is None or value in ([], {}):
                return ""
            return value if self.kind == "names" and isinstance(value, str) else _flow(value)
        return value

    def read(self, entered: Any) -> Any:
        """Return what was entered as a value of the configuration.

        Raises:
            ConfigError: if it is no value at all; whether it is in range, the configuration decides.
        """
        if self.kind == "rewards":
            return [self._reward(str(entry)) for entry in entered or []]
        if self.kind == "switch":
            return bool(entered)
        if entered is None or entered == "":
            return None if self.optional or self.kind != "text" else ""
        if self.kind in ("yaml", "names"):
            return read_value(TrainConfig, self.key, str(entered).strip())
        if self.kind in ("whole", "number"):
            try:
                number = float(entered)
            except (TypeError, ValueError, OverflowError):
                raise ConfigError(f"{self.key}={entered!r} is not a number.") from None
            return int(number) if self.kind == "whole" and number.is_integer() else number
        return str(entered).strip()

    def _reward(self, text: str) -> Any:
        try:
            return entry_of(text)
        except ValueError as error:
            raise ConfigError(f"{self.key}={text!r} is not readable: {error}.") from None


def fields() -> Iterator[Field]:
    """Yield a field for every setting of a run, groups of settings unfolded, in their order."""
    return (_field(key, info) for key, info in leaves(TrainConfig) if key not in HIDDEN)


def in_front() -> list[Field]:
    """Return the fields that most people change."""
    known = {field.key: field for field in fields()}
    return [known[key] for key in PLAIN]


def behind() -> dict[str, list[Field]]:
    """Return all other fields, by group."""
    groups: dict[str, list[Field]] = {}
    for field in fields():
        if field.key not in PLAIN:
            groups.setdefault(field.group, []).append(field)
    return groups


def values_of(config: TrainConfig) -> dict[str, Any]:
    """Return what the fields show of a configuration, by key."""
    dumped = config.model_dump(mode="json")
    return {field.key: field.shown(_at(dumped, field.key)) for field in fields()}


def read_form(entered: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration that a filled form describes; fields that are missing keep their defaults.

    Raises:
        UsageError: and its children: what is wrong with it, one paragraph a setting. Prompts and built-in rewards are looked up,
            so that a wrong name is found before anything starts.
    """
    values: dict[str, Any] = {}
    defaults = TrainConfig().model_dump(mode="json")
    for field in fields():
        if field.key not in entered:
            continue
        value = field.read(entered[field.key])
        if value is None and not field.optional:
            continue  # left empty: the default
        is_open = field.key in FOLLOWING and value == _at(defaults, field.key)
        if is_open and not (field.key == "rollout.branches" and entered.get("algorithm.loss") in FORWARD):
            continue  # as it was: it follows what else is set
        *groups, last = field.key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    config = parse_settings(TrainConfig, values)
    for key, source in (("prompts", config.prompts), ("evaluation.prompts", config.evaluation.prompts)):
        if source is not None:
            load_prompts(source, key, f"A prompt of your own goes into brackets: {_flow([source])}.")
    for reward in (*config.rewards, *config.evaluation.held_out):
        # A user's own code runs in the training alone.
        if ":" not in reward.name and not is_address(reward.name):
            build_reward(reward)
    return config


def start_from(start: str, runs: Mapping[str, Path]) -> TrainConfig:
    """Return the configuration that a form is filled with, without a name.

    Args:
        start: one of `STARTS`, or the name of a run.
        runs: folders of the runs.

    Raises:
        UsageError: and its children, if a run's configuration is damaged or does not fit this version.
    """
    if start in runs:
        return run_config(runs[start]).model_copy(update={"name": ""})
    changes = ["algorithm.loss=nft"] if start == "*nft" else []
    own = {"*demo": DEMO, "*published": PUBLISHED}.get(start)
    return load_config(own, changes).model_copy(update={"name": ""})


def plan(config: TrainConfig) -> str:
    """Return in a sentence what a training will do."""
    rounds, size, minutes = config.run.rounds, config.rollout.batch_size, config.run.time_limit_minutes
    evaluations = config.evaluation.times(rounds)
    rewards = " + ".join(reward.label for reward in config.rewards)
    if minutes is not None:
        return (
            f"{minutes:,g} minutes, or {rounds:,} rounds if these end sooner, of {size:,} pictures a round, rewarded for {rewards}; "
            f"evaluations of {config.evaluation.images} fixed pictures before, after and on the way."
        )
    return (
        f"{rounds:,} round{'s' * (rounds != 1)} of {size:,} pictures, rewarded for {rewards}: {rounds * size:,} pictures scored, and "
        f"{evaluations} evaluations of {config.evaluation.images} fixed ones."
    )


def wrong_fields(text: str) -> list[str]:
    """Return the keys of the settings that the text of an error blames, each line one: those of the form that begin it."""
    keys = [field.key for field in fields()]
    begun = [key for line in lines_of(text) for key in keys if re.match(rf"{re.escape(key)}[=:.]", line)]
    named = [key for key in keys if re.search(rf"(?<![\w.]){re.escape(key)}=", text)]
    return list(dict.fromkeys(begun or named[:1]))


def split_weights(rewards: Sequence[str]) -> tuple[list[str], list[float]]:
    """Return the entries of the form's rewards without their weights, and the weights."""
    texts, weights = [], []
    for text in rewards:
        entry = _entry(text)
        weight = finite(entry.get("weight"))
        rest = {key: value for key, value in entry.items() if key != "weight"}
        texts.append(text if weight is None else str(rest["name"]) if set(rest) == {"name"} else _flow(rest))
        weights.append(1.0 if weight is None else weight)
    return texts, weights


def weighted(rewards: Sequence[str], weights: Sequence[float | None]) -> list[str]:
    """Return the entries of the form's rewards, each with its weight; 1 is left out, as are those that a text has itself."""
    found = []
    for place, text in enumerate(rewards):
        entry, weight = _entry(text), weights[place] if place < len(weights) else None
        own = weight is not None and weight != 1 and entry and "weight" not in entry
        found.append(_flow(entry | {"weight": weight}) if own else text)
    return found


def _entry(text: str) -> dict[str, Any]:
    """Return an entry of the form's rewards as a mapping; an empty one where it is unreadable."""
    try:
        entry = meant(entry_of(text))
    except ValueError:
        return {}
    return {"name": entry} if isinstance(entry, str) else {str(key): value for key, value in mapping(entry).items()}


def in_form_words(text: str) -> str:
    """Return the text of an error, each line that begins with a setting of the form's front begun with its label, too."""
    lines = []
    for line in lines_of(text):
        key = next((key for key in PLAIN if line.startswith((f"{key}=", f"{key}:"))), None)
        lines.append(line if key is None else f"{PLAIN[key][0]}: {line}")
    return "\n".join(lines)


def _field(key: str, info: FieldInfo) -> Field:
    label, meaning = PLAIN.get(key, (key.rpartition(".")[2].replace("_", " "), ""))
    meaning = meaning or " ".join((info.description or "").replace("`", "").split())
    kinds, optional = _alternatives(info.annotation)
    bounds: dict[str, float] = {}
    for found in info.metadata:
        for name, side in (("ge", "minimum"), ("gt", "minimum"), ("le", "maximum"), ("lt", "maximum")):
            if getattr(found, name, None) is not None:
                bounds[side] = getattr(found, name)
    choices = tuple(SUGGESTED.get(key, ()))
    kind: Kind = "yaml"
    if key == "rewards":
        kind = "rewards"
    elif key in SUGGESTED:
        kind = "names"
    elif len(kinds) == 1:
        only = kinds[0]
        if get_origin(only) is Literal:
            kind, choices = "choice", tuple(map(str, get_args(only)))
        else:
            simple: dict[Any, Kind] = {bool: "switch", int: "whole", float: "number", str: "text"}
            kind = simple.get(only, "yaml")
    return Field(key, kind, label, meaning, choices, optional=optional, **bounds)


def _alternatives(annotation: Any) -> tuple[list[Any], bool]:
    """Return the types that a setting may have, and whether it may be left out."""
    kinds = alternatives(annotation)
    return [kind for kind in kinds if kind is not type(None)], type(None) in kinds


def _digits(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,g}"


def _at(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def _short_reward(entry: Mapping[str, Any]) -> str:
    """Return an entry of `rewards:` as short as it can be written."""
    plain = RewardSettings.model_validate(entry["name"]).model_dump(mode="json")
    changed = {key: value for key, value in entry.items() if value != plain.get(key)}
    return _flow({"name": entry["name"], **changed}) if changed else str(entry["name"])


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int, float)) else write_yaml(value, flow=True)


def choices_of(field: Field) -> Sequence[tuple[str, str]]:
    """Return what a field offers: what is shown, and the value."""
    about = SUGGESTED.get(field.key, {})
    return [(about.get(choice, choice), choice) for choice in field.choices]
