"""What the folder of a model, or its files on the Hub, say of it before any weights are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from rlcm.builtin import model_path
from rlcm.errors import ConfigError, MissingFileError, SamplerError
from rlcm.paths import existing
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.hub import HUB_ID, download, is_commit
from rlcm.pipelines.settings import BUILTIN, ModelSettings
from rlcm.policy.samplers import NOT_TABLES

INDEX = "model_index.json"
NOT_NEEDED = ("safety_checker", "feature_extractor", "pe", "pe_tokenizer")
MOST_TIMESTEPS = 100_000
"""Of a scheduler; published ones have 1000."""


def pipeline_class(settings: ModelSettings) -> str:
    """Return the name of the pipeline class of `model.path`, having read nothing but its model_index.json.

    Raises:
        MissingFileError, ConfigError: as `rlcm.pipelines.loading.load_pipeline`.
    """
    index = index_of(settings)
    name = index["_class_name"]
    if not isinstance(name, str):
        raise ConfigError(
            f"model.path={settings.path!r} brings its own pipeline code, which rlcm never runs; "
            f"use a model of one of these classes: {', '.join(FAMILIES)}."
        )
    if name not in FAMILIES:
        raise ConfigError(f"model.path={settings.path!r} is a {name}, which rlcm cannot train; it takes {', '.join(FAMILIES)}.")
    folder = local_folder(settings)
    if folder is not None:
        _check_folder(folder, index, settings)
    return name


def bare_scheduler(settings: ModelSettings) -> Any:
    """Return the scheduler of `model.path`, having read its configuration and the index only.

    Raises:
        SamplerError: if diffusers has no such scheduler.
        MissingFileError, ConfigError: as `rlcm.pipelines.loading.load_pipeline`.
    """
    name, config = _component(settings, "scheduler", "scheduler_config.json")
    kind = getattr(diffusers, name, None)
    _check_scheduler(config, settings)
    if kind is None:
        reason = NOT_TABLES.get(name, "the installed diffusers has no such scheduler")
        raise SamplerError(f"model.path={settings.path!r} samples with {name}, which cannot be used: {reason}.")
    return kind.from_config(config)


def configuration(settings: ModelSettings) -> dict[str, Any]:
    """Return what a model says of itself: its network's configuration, and over it the numbers and words of its index.

    Raises:
        MissingFileError, ConfigError: as `rlcm.pipelines.loading.load_pipeline`.
    """
    _, network = _component(settings, FAMILIES[pipeline_class(settings)].network, "config.json")
    index = index_of(settings)
    return network | {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}


def bare_network(settings: ModelSettings) -> nn.Module:
    """Return the network of `model.path` without storage for its weights, having read its configuration and the index only.

    Raises:
        MissingFileError, ConfigError: as `rlcm.pipelines.loading.load_pipeline`.
    """
    part = FAMILIES[pipeline_class(settings)].network
    _component(settings, part, "config.json")
    network = bare_part(settings, part)
    if network is None:
        raise ConfigError(f"model.path={settings.path!r}: its model_index.json names no {part} that diffusers knows.")
    return network


def bare_part(settings: ModelSettings, part: str) -> nn.Module | None:
    """Return a network of the pipeline without storage for its weights; None where the pipeline has none of that name."""
    kind = network_class(settings, part)
    if kind is None:
        return None
    _, config = _component(settings, part, "config.json")
    with torch.device("meta"):
        bare: nn.Module = (
            kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class.from_dict(config))
        )
    return bare


def network_class(settings: ModelSettings, part: str) -> Any:
    """Return the class of a component of the pipeline, None where it is no network or there is none of that name."""
    entry = index_of(settings).get(part)
    if not isinstance(entry, list) or not isinstance(entry[-1], str):
        return None
    kind = getattr(diffusers, entry[-1], None) or getattr(transformers, entry[-1], None)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def unpinned(settings: ModelSettings) -> list[str]:
    """Return a note for each of the model and its LoRAs that the Hub may change from one run to the next."""
    found = []
    if local_folder(settings) is None and not is_commit(settings.revision):
        found.append(("model.revision", settings.path, settings.revision))
    for number, lora in enumerate(settings.loras):
        if existing(lora.path, "model.loras") is None and not is_commit(lora.revision):
            found.append((f"model.loras.{number}.revision", lora.path, lora.revision))
    return [
        f"unpinned: {path} is taken from the Hub as its {'branch or tag ' + revision if revision else 'main branch'} is today; "
        f"set {setting} to a commit's 40-digit hash, and the run can be repeated"
        for setting, path, revision in found
    ]


def local_folder(settings: ModelSettings) -> Path | None:
    """Return the folder of a packaged or local model, None for a Hub id.

    Raises:
        MissingFileError: if the path is neither a folder that exists nor of the form of a Hub id.
    """
    if settings.path in BUILTIN:
        return model_path(BUILTIN[settings.path])
    folder = existing(settings.path, "model.path")
    if folder is not None and folder.is_dir():
        return folder
    if folder is not None:
        raise MissingFileError(
            f"model.path={settings.path!r} is a file; make a folder of it once, by diffusers' from_single_file(...) and "
            "save_pretrained(...) of the model's pipeline, and give that folder. A LoRA goes into model.loras, beside a model."
        )
    if HUB_ID.fullmatch(settings.path):
        return None
    raise MissingFileError(
        f"model.path={settings.path!r} is neither a folder nor a Hub id; give builtin, builtin-teacher, the folder of a "
        "diffusers pipeline, or a Hub id such as SimianLuo/LCM_Dreamshaper_v7."
    )


def index_of(settings: ModelSettings) -> dict[str, Any]:
    """Return the model_index.json of a model; errors as `rlcm.pipelines.loading.load_pipeline`."""
    folder = local_folder(settings)
    if folder is not None and not (folder / INDEX).is_file():
        raise MissingFileError(
            f"model.path={settings.path!r} has no model_index.json, so it is not a diffusers pipeline; "
            "give the folder that pipeline.save_pretrained wrote."
        )
    index = _read_json(settings, INDEX)
    if "_class_name" not in index:
        raise ConfigError(
            f"model.path={settings.path!r}: its model_index.json is not a pipeline's index, as it names no class."
        )
    return index


def _component(settings: ModelSettings, name: str, file: str) -> tuple[str, dict[str, Any]]:
    """Return the class and the configuration of a pipeline's component."""
    entry = index_of(settings).get(name)
    if not isinstance(entry, list) or not isinstance(entry[-1], str):
        raise MissingFileError(
            f"model.path={settings.path!r} has no {name}; give the folder that pipeline.save_pretrained wrote."
        )
    return entry[-1], _read_json(settings, f"{name}/{file}")


def _read_json(settings: ModelSettings, name: str) -> dict[str, Any]:
    """Return the content of one small file of a model, which alone is downloaded if it is on the Hub."""
    folder = local_folder(settings)
    file = (
        folder / name
        if folder is not None
        else download(settings.path, name, settings.revision, "model.path", local_files_only=settings.local_files_only)
    )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} in place of an object")
    except FileNotFoundError as error:
        raise MissingFileError(f"model.path={settings.path!r} lacks {name}; copy the whole folder again.") from error
    except (OSError, ValueError, TypeError) as error:
        kind = "a pipeline's index" if name == INDEX else "a configuration"
        raise ConfigError(f"{file} is not {kind} ({error}); save the pipeline again with save_pretrained.") from error
    return content


def _check_folder(folder: Path, index: dict[str, Any], settings: ModelSettings) -> None:
    """Refuse a local pipeline that lacks a component, or whose network is not in safetensors."""
    for name, entry in index.items():
        if name in NOT_NEEDED or not _is_component(entry):
            continue
        if not (folder / name).is_dir():
            raise MissingFileError(f"model.path={settings.path!r} lacks its component {name!r}; copy the whole folder again.")
        if name in ("unet", "transformer") and not any((folder / name).glob("*.safetensors")):
            raise MissingFileError(
                f"model.path={settings.path!r} has no safetensors in {name}/, and rlcm reads no pickled weights; "
                "save the pipeline again with save_pretrained(..., safe_serialization=True)."
            )
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        _check_scheduler(_read_json(settings, "scheduler/scheduler_config.json"), settings)


def _is_component(entry: Any) -> bool:
    """Whether an entry of the index names a library and a class; some pipelines keep lists of numbers beside those."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)


def _check_scheduler(config: Mapping[str, Any], settings: ModelSettings) -> None:
    """Refuse numbers of a scheduler that no model was trained with, before a table of that length is made."""
    steps = config.get("num_train_timesteps", 1000)
    sound = isinstance(steps, int) and not isinstance(steps, bool) and 1 <= steps <= MOST_TIMESTEPS
    wrong = {"num_train_timesteps": steps} if not sound else {}
    wrong |= {key: value for key, value in config.items() if isinstance(value, float) and not _is_bound(key, value)}
    for key, value in wrong.items():
        raise ConfigError(
            f"model.path={settings.path!r}: {key}={value} in scheduler/scheduler_config.json is no number that a model was trained "
            "with; copy the file again."
        )


def _is_bound(key: str, value: float) -> bool:
    """Whether a number of a scheduler is finite, or the infinity by which DPM-Solver says that it clips nothing."""
    return math.isfinite(value) or (key == "lambda_min_clipped" and value == -math.inf)
