"""Which prompts a model is asked: those it was trained on, and, apart from them, others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlcm.builtin.vocabulary import known as asked_by
from rlcm.errors import ConfigError, MissingFileError
from rlcm.paths import command, existing
from rlcm.pipelines.settings import BUILTIN
from rlcm.training.config import TrainConfig
from rlcm.training.prompts import BUILT_IN, PromptSet, load_prompts

logger = logging.getLogger(__name__)
Kind = Literal["train", "held-out", "unseen"]


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are looked at together."""

    name: str
    kind: Kind
    """train: the run learnt from them. held-out: others, of the user's choice. unseen: the built-in model's tests of
    generalisation."""
    prompts: tuple[str, ...]
    metadata: tuple[dict[str, Any], ...]
    trained: int
    """How many of them are training prompts."""


def prompt_sets(config: TrainConfig, run: bool, wanted: Sequence[str], limit: int) -> list[Group]:
    """Return the sets of prompts to ask, each with at most `limit` prompts, evenly spaced through it.

    The first is what the run was trained on, or for a model without a run its configuration's prompts. The others are those
    that are `wanted`; where none are, the prompts of the run's own evaluation and, for the built-in model, other prompts of the
    kinds that the run was trained on, and prompts for what no training of the model has seen.

    Args:
        wanted: sources as for `load_prompts`, or `name=source`.

    Raises:
        ConfigError: if two sets have the same name, or one is empty.
        MissingFileError: if a source is not there.
    """
    training = _configured(config.prompts, "prompts")
    known = frozenset(training.prompts) if run else frozenset()
    first: Kind = "train" if run else "held-out"
    sets = [_group("train" if run else "prompts", first, training, known, limit)]
    if wanted:
        sets += [_group(*_named(text), known, limit) for text in wanted]
    else:
        if config.evaluation.prompts is not None:
            sets.append(
                _group("evaluation", "held-out", _configured(config.evaluation.prompts, "evaluation.prompts"), known, limit)
            )
        if config.model.path in BUILTIN:
            sets += [_group(name, "unseen", prompts, known, limit) for name, prompts in _unseen(training).items()]
    names = [group.name for group in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        source = wanted[-1].rpartition("=")[2]
        raise ConfigError(
            f"--prompts: two sets are called {', '.join(twice)}; name them, as in {command('--prompts', f'other={source}')}."
        )
    return sets


def _configured(source: str | Sequence[str], setting: str) -> PromptSet:
    """Return the prompts that a configuration names."""
    try:
        return load_prompts(source, setting)
    except MissingFileError as error:
        raise MissingFileError(
            f"{error} A relative path in a configuration counts from the working directory: start this command in the folder that "
            "it is meant for, or correct the path in the configuration."
        ) from error


def _named(text: str) -> tuple[str, Kind, PromptSet]:
    name, equals, source = text.partition("=")
    if not equals or existing(text, "--prompts"):
        name, source = (text if text in BUILT_IN else Path(text).stem), text
    if source and not name.strip():
        raise ConfigError(
            f"--prompts={text!r} gives its set no name; write {command('--prompts', source)}, or a name before the =."
        )
    return name, "held-out", load_prompts(source, "--prompts", "Prompts of your own go into a file.")


def _unseen(training: PromptSet) -> dict[str, PromptSet]:
    """Return what the built-in model can be asked besides its training prompts, by name: of the same kinds, where they are known."""
    asked = [asked_by(*row) for row in zip(training.prompts, training.metadata, strict=True)]
    kinds = {entry.get("tag") for entry in asked if entry is not None}
    sets = {}
    own = {key for entry in training.metadata for key in entry}
    for name, source in {"unseen prompts": "world-unseen", "unseen combinations": "world-held-out"}.items():
        found = load_prompts(source)
        if lacking := sorted(own - {key for entry in found.metadata for key in entry}):
            logger.warning(
                "the set %r is left out: its prompts have no %s, which the run's have and its rewards may need; add others by %s",
                name,
                ", ".join(lacking),
                command("--prompts", "name=FILE"),
            )
            continue
        rows = [
            (prompt, entry)
            for prompt, entry in zip(found.prompts, found.metadata, strict=True)
            if prompt not in training.prompts and (not kinds or entry["tag"] in kinds)
        ]
        if rows:
            sets[name] = PromptSet(*map(tuple, zip(*rows, strict=True)))
    return sets


def _group(name: str, kind: Kind, source: PromptSet, known: frozenset[str], limit: int) -> Group:
    count = min(limit, len(source))
    rows = [i * len(source) // count for i in range(count)]
    prompts = tuple(source.prompts[i] for i in rows)
    return Group(name, kind, prompts, tuple(source.metadata[i] for i in rows), sum(prompt in known for prompt in prompts))
