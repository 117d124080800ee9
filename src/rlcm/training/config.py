"""The configuration of a run: the components' own settings composed, read from YAML and `key=value`, checked, written back."""

from __future__ import annotations

import difflib
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from pydantic import Field, ValidationError, model_validator

from rlcm.addresses import without_secrets
from rlcm.builtin import PUBLISHED
from rlcm.errors import ConfigError
from rlcm.learning.algorithm import AlgorithmSettings
from rlcm.learning.optimisation import OptimizerSettings
from rlcm.paths import local
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.policy.policy import AdapterSettings
from rlcm.policy.rollout import RolloutSettings
from rlcm.rewards.settings import RewardList, RewardSettings
from rlcm.runs.whole_config import last_line
from rlcm.settings import Changes, Settings
from rlcm.training.defaults import SHORT, changed, following, spelt_out
from rlcm.training.evaluate import EvaluationSettings
from rlcm.training.explaining import in_words, names_of
from rlcm.training.run_settings import RunSettings as RunSettings  # its former place
from rlcm.training.translation import in_a_file, unfolded
from rlcm.training.values import apply, read_file
from rlcm.training.whole import is_of_run, read_whole
from rlcm.yaml_text import meant, write_yaml

if TYPE_CHECKING:
    from typing_extensions import Unpack

S = TypeVar("S", bound=Settings)


class Values(TypedDict, total=False):
    """What `TrainConfig(...)` and `rlcm.train(...)` take by name: settings, groups of them as dicts, and their short names."""

    name: str
    output: str | Path
    seed: int
    sampler: SamplerSettings | Changes
    lora: AdapterSettings | Changes
    rollout: RolloutSettings | Changes
    algorithm: AlgorithmSettings | Changes
    optimizer: OptimizerSettings | Changes
    evaluation: EvaluationSettings | Changes
    run: RunSettings | Changes
    rounds: int
    minutes: float | None
    lr: float
    steps: int
    guidance: float | None
    branches: int
    batch_size: int
    rank: int
    leash: float
    images: int


class AllValues(Values, total=False):
    """Of `TrainConfig(...)` also those that `rlcm.train` takes as objects."""

    model: ModelSettings | Changes
    prompts: str | Sequence[str]
    rewards: Sequence[RewardSettings | Changes | str]


class _CalledFromPython(type(Settings)):  # type: ignore[misc]
    """The short names and our own errors for `TrainConfig(...)`; what is read from files and command lines goes another way."""

    def __call__(cls, *unnamed: Any, **values: Any) -> Any:
        if unnamed:
            raise ConfigError(
                f"TrainConfig({unnamed[0]!r}): settings have names, such as rounds=20; `load_config` reads a file."
            )
        rewards = values.get("rewards")
        if any(map(callable, rewards if isinstance(rewards, (list, tuple)) else [rewards])):
            raise ConfigError(
                "rewards: a function is no setting; pass it beside the configuration: rlcm.train(config, rewards=...)."
            )
        try:
            return super().__call__(**spelt_out(values))
        except ValidationError as error:
            text = in_words(cls, error)
            wrong = [str(detail["loc"][0]) for detail in error.errors() if detail["type"] == "extra_forbidden"]
            near = [close for name in wrong for close in difflib.get_close_matches(name, SHORT, n=1)]
            text += f"\nShort names are {', '.join(SHORT)}." if near else ""
        raise ConfigError(without_secrets(text))


class TrainConfig(Settings, metaclass=_CalledFromPython):
    """Everything that a training run depends on. All of it has defaults: the built-in model learns to draw what was asked.

        TrainConfig(rounds=20, lr=1e-3, lora={"rank": 8})

    Settings of a group are given as a dict of those that are to be others, or as the group's class. The short names of Python are
    rounds, minutes, lr, steps, guidance, branches, batch_size, rank, leash and images; see `rlcm.training.defaults.SHORT`.

    Raises:
        ConfigError: if a setting is unknown, of the wrong type or out of range, or two of them do not fit together.
    """

    name: str = Field(default="", max_length=120, pattern=r"^([\w\-][\w.\-]*)?$")
    """Name of the run and of its folder, of letters, digits, `-`, `_` and `.`; left out, it is made of reward and date."""
    output: str = "runs"
    """Folder in which the run's folder is made."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of all noise, prompts and first weights."""
    model: ModelSettings = ModelSettings()
    """The model that is tuned."""
    sampler: SamplerSettings = SamplerSettings()
    """How it samples."""
    lora: AdapterSettings = AdapterSettings()
    """What is trained."""
    prompts: str | tuple[str, ...] = "world"
    """A built-in set, a .txt, .jsonl or .json file, or a list of prompts."""
    rewards: RewardList = [RewardSettings(name="composition", label="composition")]
    """What is rewarded."""
    rollout: RolloutSettings = RolloutSettings()
    """How much is sampled in a round."""
    algorithm: AlgorithmSettings = AlgorithmSettings()
    """How rewards become a change of the weights."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimiser."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What is looked at on the way."""
    run: RunSettings = RunSettings()
    """Length, memory and what is kept."""

    if TYPE_CHECKING:

        def __init__(self, **values: Unpack[AllValues]) -> None: ...

    @classmethod
    def published(cls, **changes: Unpack[AllValues]) -> TrainConfig:
        """Return RLCM as published, with the paper's settings for compressibility, on the built-in model; changes as for the class."""
        return parse_settings(cls, changed(meant(read_file(PUBLISHED, cls)), changes))

    @model_validator(mode="before")
    @classmethod
    def _follows(cls, values: Any) -> Any:
        return following(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        group = self.rollout.branches * self.rollout.images_per_prompt
        if self.rollout.batch_size % group:
            raise ValueError(
                f"rollout.batch_size={self.rollout.batch_size} is not divisible by rollout.images_per_prompt="
                f"{self.rollout.images_per_prompt} times rollout.branches={self.rollout.branches}; use a multiple of {group}."
            )
        trajectories = self.rollout.batch_size // self.rollout.branches
        if trajectories < self.algorithm.minibatches:
            raise ValueError(
                f"algorithm.minibatches={self.algorithm.minibatches} is more than the {trajectories} trajectories of a round; "
                f"use 1 .. {trajectories}."
            )
        if self.rollout.batch_size == 1 and self.algorithm.loss != "reward_backprop":
            raise ValueError(
                "rollout.batch_size=1 leaves a round one image, which is compared with no other; use 2 or more, and better 16 or more."
            )
        if not any(reward.weight for reward in self.rewards):
            raise ValueError(
                "rewards: all weights are 0, so there is nothing to learn; give one of them a weight, such as weight: 1."
            )
        groups = self.algorithm.advantage in ("group", "leave_one_out")
        if groups and group < 2:
            raise ValueError(
                f"algorithm.advantage={self.algorithm.advantage} compares images of one prompt, of which a round has one; "
                "set rollout.images_per_prompt or rollout.branches to 2 or more."
            )
        if self.algorithm.loss == "rebel" and group < 2:
            raise ValueError(
                "algorithm.loss=rebel compares two images of one prompt, of which a round has one; set rollout.images_per_prompt "
                "or rollout.branches to 2 or more."
            )
        if self.algorithm.is_forward and self.algorithm.noise_levels > self.sampler.calls:
            raise ValueError(
                f"algorithm.noise_levels={self.algorithm.noise_levels} is more than the {self.sampler.calls} steps of the sampler, "
                f"which have a noise level each; use 1 .. {self.sampler.calls}."
            )
        plain = self.algorithm.dense_every or self.algorithm.loss == "reward_backprop"
        if plain and self.rollout.branches > 1:
            name = "dense_every" if self.algorithm.dense_every else "loss"
            raise ValueError(
                f"algorithm.{name}={getattr(self.algorithm, name)} works on plain trajectories; set rollout.branches=1, not "
                f"{self.rollout.branches}."
            )
        if self.optimizer.max_pace > 1 and self.algorithm.kl_target is None:
            raise ValueError(
                f"optimizer.max_pace={self.optimizer.max_pace:g} lets the learning rate follow a KL divergence that is to be used; "
                "set algorithm.kl_target, or this to 1."
            )
        if self.model.quantisation != "none" and self.run.sharding != "none":
            raise ValueError(
                f"run.sharding={self.run.sharding} cannot share out weights of 8 or 4 bits, and model.quantisation="
                f"{self.model.quantisation}; use run.sharding=none, or model.quantisation=none."
            )
        normalised = [reward.label for reward in self.rewards if reward.normalise]
        if self.algorithm.follows_reward and normalised:
            name = "last_call_weight" if self.algorithm.last_call_weight else "loss"
            raise ValueError(
                f"rewards.{normalised[0]}: normalise=true has no meaning for algorithm.{name}={getattr(self.algorithm, name)}, which "
                "follows the gradients of the rewards as they are; set their weights instead."
            )
        if self.algorithm.backprop_calls > self.sampler.calls and self.algorithm.loss == "reward_backprop":
            raise ValueError(
                f"algorithm.backprop_calls={self.algorithm.backprop_calls} is more than the {self.sampler.calls} steps of the sampler; "
                f"use 1 .. {self.sampler.calls}."
            )
        return self

    def dump(self) -> str:
        """Return the resolved configuration as YAML, which ends in a line by which a file that was cut short is known."""
        values = self.model_dump(mode="json")
        return write_yaml(values) + last_line(values)


def checked(config: object) -> TrainConfig:
    """Return a configuration whose values are all checked, also those that `model_copy(update=...)` put into it unchecked.

    Raises:
        ConfigError: if it is anything else, such as the path of a file, or a value of it is wrong.
    """
    if not isinstance(config, TrainConfig):
        raise ConfigError(
            f"config={config!r} is a {type(config).__name__}; give a TrainConfig, such as load_config(FILE) returns."
        )
    return parse_settings(TrainConfig, _given(config))


def _given(value: Any) -> Any:
    """Return settings as nested mappings of what was given, also under names that are no settings; the rest is left open."""
    if isinstance(value, Settings):
        named = value.model_fields_set | (vars(value).keys() - type(value).model_fields.keys())
        return {name: _given(one) for name, one in vars(value).items() if name in named}
    return [_given(one) for one in value] if isinstance(value, (list, tuple)) else value


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration of a YAML file, or the defaults, with `key.subkey=value` changes applied in order.

    Raises:
        MissingFileError: if the file is not there.
        ConfigError: if it is no YAML mapping or has a key twice, or a key is unknown, of the wrong type or out of range, or if it
            is a run's and lacks settings that the run wrote.
    """
    return parse_settings(TrainConfig, read_values(path, overrides))


def read_values(path: Path | str | None, overrides: Sequence[str], kind: type[Settings] = TrainConfig) -> dict[str, Any]:
    """Return the nested mapping of a YAML file with the changes applied, as settings of some kind take it; errors as `load_config`."""
    if not (path is None or (isinstance(path, (str, os.PathLike)) and isinstance(os.fspath(path), str))):
        raise ConfigError(
            f"config={path!r} is a {type(path).__name__}; give a path, and settings as changes: ['run.rounds=3']."
        )
    file = None if path is None else local(path, "config")
    values: dict[str, Any] = {}
    if file is not None:
        values = read_whole(file, kind, names_of(TrainConfig)) if is_of_run(file) else read_file(file, kind)
    apply(values, overrides, kind)
    return values


def parse_settings(kind: type[S], values: Mapping[str, Any]) -> S:
    """Return the settings of that kind that a nested mapping describes; errors as `load_config`."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        text = in_words(kind, error)
    written, dotted = unfolded(kind, values)
    if dotted:
        said = f"{', '.join(dotted)}: keys with dots are for the command line; in a file write"
        try:
            kind.model_validate(written)
            changed = [key for key in written if key not in values or written[key] != values[key]]
            text = said + in_a_file(written, changed)
        except ValidationError as error:  # what is wrong beside the dots comes first
            example = in_a_file({"run": {"rounds": 2}}, ["run"])
            text = f"{in_words(kind, error)}\n{said} a group, such as{example}"
    raise ConfigError(without_secrets(text))


def commented_yaml(settings: Settings | None = None, indent: int = 0) -> str:
    """Return settings (the defaults of a run) as YAML, every key under a comment that says what it means."""
    settings = settings or TrainConfig()
    pad = "  " * indent
    text = ""
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        meaning = " ".join((field.description or "").split())
        text += "".join(f"{pad}# {line}\n" for line in textwrap.wrap(meaning, 110 - len(pad)))
        if isinstance(value, Settings):
            text += f"{pad}{key}:\n{commented_yaml(value, indent + 1)}"
        else:
            # JSON is YAML too, and keeps lists and objects on one line.
            text += f"{pad}{key}: {json.dumps(settings.model_dump(mode='json')[key], ensure_ascii=False)}\n"
    return text


def key_like(word: str) -> str | None:
    """Return the setting of a run whose name, or the last part of it, is or resembles a word."""
    names = {name.rpartition(".")[2]: name for name in names_of(TrainConfig)}
    names |= {name: name for name in names.values()}
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    return names[close[0]] if close else None
