"""From `model.path` to a frozen diffusers pipeline on its device; what cannot work is refused before weights are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from rlcm.builtin import model_path
from rlcm.errors import ConfigError, MissingFileError, SamplerError
from rlcm.paths import existing
from rlcm.pipelines.acceleration import order_channels_last, require_compiler, use_tf32
from rlcm.pipelines.base import text_encoders
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.hub import HUB_ID, download, hub_message, is_commit
from rlcm.pipelines.lora_files import locate, read_file
from rlcm.pipelines.loras import BoundLora, apply_loras, bind
from rlcm.pipelines.precision import resolve
from rlcm.pipelines.quantisation import check_quantisation, quantise
from rlcm.pipelines.settings import BUILTIN, ModelSettings
from rlcm.policy.samplers import NOT_TABLES
from rlcm.runs.weights import load_whole

# What is loaded only to reject or to mark images has no place in training.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "LatentConsistencyModelPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
INDEX = "model_index.json"
NOT_NEEDED = ("safety_checker", "feature_extractor")
MOST_TIMESTEPS = 100_000
"""Of a scheduler; published ones have 1000."""


def load_pipeline(settings: ModelSettings) -> Any:
    """Return the pipeline that the settings name: frozen, in eval mode, on its device, with their LoRAs applied.

    Raises:
        MissingFileError: if the model, or a file that it needs, is not there.
        ConfigError: if it is no supported pipeline, or a setting does not fit it or this machine.
        WeightsError: if weights of the model or of a LoRA are damaged, missing, or those of another network.
    """
    device, dtype = resolve(settings)
    use_tf32(settings.tf32, device)
    if settings.compile:
        require_compiler(device)
    check_quantisation(settings, device, dtype)
    name = pipeline_class(settings)
    loras = read_loras(settings, name)
    pipeline = _read_weights(settings, name, dtype)
    if name == "StableDiffusionXLPipeline" and pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
        pipeline.vae.float()  # this VAE's activations overflow in fp16
    apply_loras(pipeline, loras)
    if settings.quantisation != "none":
        # After LoRAs were added to the weights, which are so rounded once.
        quantise(getattr(pipeline, _network_name(pipeline)), settings.quantisation)
    waiting = text_encoders(pipeline) if settings.offload_text_encoders else []
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            if not any(component is encoder for encoder in waiting):
                component.to(device)
    _save_memory(pipeline, settings)
    if settings.channels_last:
        order_channels_last(pipeline, _network_name(pipeline))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_class(settings: ModelSettings) -> str:
    """Return the name of the pipeline class of `model.path`, having read nothing but its model_index.json.

    Raises:
        MissingFileError, ConfigError: as `load_pipeline`.
    """
    index = _index(settings)
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
        MissingFileError, ConfigError: as `load_pipeline`.
    """
    name, config = _component(settings, "scheduler", "scheduler_config.json")
    kind = getattr(diffusers, name, None)
    _check_scheduler(config, settings)
    if kind is None:
        reason = NOT_TABLES.get(name, "the installed diffusers has no such scheduler")
        raise SamplerError(f"model.path={settings.path!r} samples with {name}, which cannot be used: {reason}.")
    return kind.from_config(config)


def bare_network(settings: ModelSettings) -> nn.Module:
    """Return the network of `model.path` without storage for its weights, having read its configuration and the index only.

    Raises:
        MissingFileError, ConfigError: as `load_pipeline`.
    """
    part = FAMILIES[pipeline_class(settings)].network
    _component(settings, part, "config.json")
    network = _bare(settings, part)
    if network is None:
        raise ConfigError(f"model.path={settings.path!r}: its model_index.json names no {part} that diffusers knows.")
    return network


def _bare(settings: ModelSettings, part: str) -> nn.Module | None:
    """Return a network of the pipeline without storage for its weights; None where the pipeline has none of that name."""
    kind = _network_class(settings, part)
    if kind is None:
        return None
    _, config = _component(settings, part, "config.json")
    with torch.device("meta"):
        bare: nn.Module = (
            kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class.from_dict(config))
        )
    return bare


def _network_class(settings: ModelSettings, part: str) -> Any:
    """Return the class of a component of the pipeline, None where it is no network or there is none of that name."""
    entry = _index(settings).get(part)
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


def _index(settings: ModelSettings) -> dict[str, Any]:
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
    entry = _index(settings).get(name)
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
        if name.startswith("_") or not isinstance(entry, list) or entry[0] is None or name in NOT_NEEDED:
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


def _read_weights(settings: ModelSettings, name: str, dtype: torch.dtype) -> Any:
    folder = local_folder(settings)
    try:
        whole = folder or Path(
            DiffusionPipeline.download(
                settings.path,
                revision=settings.revision,
                variant=settings.variant,
                local_files_only=settings.local_files_only,
                use_safetensors=True,
                **LEFT_OUT.get(name, {}),
            )
        )
        networks = _read_networks(settings, whole, FAMILIES[name].network, dtype)
        return DiffusionPipeline.from_pretrained(
            whole, use_safetensors=True, local_files_only=True, **networks, **LEFT_OUT.get(name, {})
        )
    except (OSError, ValueError) as error:
        if folder is None:
            raise MissingFileError(hub_message(settings.path, error)) from error
        among = f", and that model.variant={settings.variant!r} is among them" if settings.variant else ""
        raise MissingFileError(
            f"model.path={settings.path!r} cannot be loaded ({error}); check that the folder is complete and that its weights are "
            f"safetensors{among}."
        ) from error


def _read_networks(settings: ModelSettings, folder: Path, trained: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Return the networks of a pipeline by name, none of which has a weight that was not in its file."""
    found = {}
    mark = f".{settings.variant}."
    kinds = {part: _network_class(settings, part) for part in _index(settings) if part not in NOT_NEEDED}
    parts = {part: kind for part, kind in kinds.items() if kind is not None and (folder / part).is_dir()}
    with_variant = [part for part in parts if any(mark in file.name for file in (folder / part).iterdir())]
    if settings.variant is not None and not with_variant:
        raise ValueError(f"no file of it is of the variant {settings.variant}")
    for part, kind in parts.items():
        options: dict[str, Any] = {_dtype_argument(kind): dtype}
        if part in with_variant:
            options["variant"] = settings.variant
        found[part] = load_whole(
            kind, folder / part, exact=part == trained, use_safetensors=True, local_files_only=True, **options
        )
    return found


def _dtype_argument(kind: Any) -> str:
    """Return what the library of a network calls the precision: diffusers ignores an unknown argument in silence."""
    if kind.__module__.startswith("transformers."):
        renamed = tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56)
    else:
        renamed = hasattr(getattr(diffusers.utils, "deprecation_utils", None), "_resolve_dtype")
    return "dtype" if renamed else "torch_dtype"


def read_loras(settings: ModelSettings, name: str) -> list[BoundLora]:
    """Return the settings' LoRAs, each of whose tensors has found its layer; of the model, only small files are read.

    Args:
        name: the pipeline's class.

    Raises:
        MissingFileError: if one of them is not there.
        WeightsError: if one is damaged, or does not fit the model as a whole.
        ConfigError: if it is not clear which file is meant, or diffusers takes no LoRA for such a model.
    """
    found = []
    for number, lora in enumerate(settings.loras):
        setting = f"model.loras.{number}.path"
        if not hasattr(getattr(diffusers, name), "load_lora_weights"):
            raise ConfigError(f"{setting}={lora.path!r}: diffusers has no LoRA loader for {name}; merge it beforehand.")
        file, beside = locate(lora, setting, local_files_only=settings.local_files_only)
        said = f"{setting}={lora.path!r}" + (f" ({file.name})" if file.name != Path(lora.path).name else "")
        read = read_file(file, said, beside)
        factors = bind(read, said, name, FAMILIES[name].network, lambda part: _bare(settings, part))
        found.append(BoundLora(lora, number, factors))
    return found


def _network_name(pipeline: Any) -> str:
    return "unet" if hasattr(pipeline, "unet") else "transformer"


def _save_memory(pipeline: Any, settings: ModelSettings) -> None:
    vae = getattr(pipeline, "vae", None)
    network = getattr(pipeline, _network_name(pipeline))
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()
        if vae is not None and vae._supports_gradient_checkpointing:
            vae.enable_gradient_checkpointing()
    if settings.attention_slicing:
        pipeline.enable_attention_slicing()
    for name, method in (("vae_slicing", "enable_slicing"), ("vae_tiling", "enable_tiling")):
        if not getattr(settings, name):
            continue
        if not hasattr(vae, method):
            raise ConfigError(f"model.{name}=true, but {type(pipeline).__name__} has no VAE that can do it; leave it out.")
        getattr(vae, method)()
