"""From `model.path` to a frozen diffusers pipeline on its device; what cannot work is refused before weights are read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from rlcm.builtin import model_path
from rlcm.errors import ConfigError, MissingFileError, SamplerError
from rlcm.paths import existing
from rlcm.pipelines.acceleration import order_channels_last, require_compiler, use_tf32
from rlcm.pipelines.base import text_encoders
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.precision import resolve
from rlcm.pipelines.quantisation import check_quantisation, quantise
from rlcm.pipelines.settings import BUILTIN, ModelSettings
from rlcm.policy.samplers import NOT_TABLES

# What is loaded only to reject or to mark images has no place in training.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "LatentConsistencyModelPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
BASE_ADAPTER = "base"
LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA's file, and is looked for where the settings name none."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_pipeline(settings: ModelSettings) -> Any:
    """Return the pipeline that the settings name: frozen, in eval mode, on its device, with their LoRAs applied.

    Raises:
        MissingFileError: if the model, or a file that it needs, is not there.
        ConfigError: if it is no supported pipeline, or a setting does not fit it or this machine.
    """
    device, dtype = resolve(settings)
    use_tf32(settings.tf32, device)
    if settings.compile:
        require_compiler(device)
    check_quantisation(settings, device, dtype)
    name = pipeline_class(settings)
    files = _lora_files(settings, name)
    pipeline = _read_weights(settings, name, dtype)
    if name == "StableDiffusionXLPipeline" and pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
        pipeline.vae.float()  # this VAE's activations overflow in fp16
    apply_loras(pipeline, settings, files)
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
    if kind is None:
        reason = NOT_TABLES.get(name, "the installed diffusers has no such scheduler")
        raise SamplerError(f"model.path={settings.path!r} samples with {name}, which cannot be used: {reason}.")
    return kind.from_config(config)


def bare_network(settings: ModelSettings) -> nn.Module:
    """Return the network of `model.path` without storage for its weights, having read its configuration and the index only.

    Raises:
        MissingFileError, ConfigError: as `load_pipeline`.
    """
    name, config = _component(settings, FAMILIES[pipeline_class(settings)].network, "config.json")
    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, name).from_config(config)
    return network


def unpinned(settings: ModelSettings) -> list[str]:
    """Return a note for each of the model and its LoRAs that the Hub may change from one run to the next."""
    found = []
    if local_folder(settings) is None and not _COMMIT.fullmatch(settings.revision or ""):
        found.append(("model.revision", settings.path, settings.revision))
    for number, lora in enumerate(settings.loras):
        if not _is_local(lora.path) and not _COMMIT.fullmatch(lora.revision or ""):
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
            "save_pretrained(...) of the model's pipeline, and give that folder."
        )
    if _HUB_ID.fullmatch(settings.path) and not settings.path.startswith("."):
        return None
    raise MissingFileError(
        f"model.path={settings.path!r} is neither a folder nor a Hub id; give builtin, builtin-teacher, the folder of a "
        "diffusers pipeline, or a Hub id such as SimianLuo/LCM_Dreamshaper_v7."
    )


def _index(settings: ModelSettings) -> dict[str, Any]:
    folder = local_folder(settings)
    if folder is not None and not (folder / "model_index.json").is_file():
        raise MissingFileError(
            f"model.path={settings.path!r} has no model_index.json, so it is not a diffusers pipeline; "
            "give the folder that pipeline.save_pretrained wrote."
        )
    index = _read_json(settings, "model_index.json")
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
    file = _download(settings.path, name, settings.revision, settings, "model.path") if folder is None else folder / name
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} in place of an object")
    except FileNotFoundError as error:
        raise MissingFileError(f"model.path={settings.path!r} lacks {name}; copy the whole folder again.") from error
    except (OSError, ValueError, TypeError) as error:
        kind = "a pipeline's index" if name == "model_index.json" else "a configuration"
        raise ConfigError(f"{file} is not {kind} ({error}); save the pipeline again with save_pretrained.") from error
    return content


def _download(path: str, name: str, revision: str | None, settings: ModelSettings, setting: str) -> Path:
    """Return a file of the Hub, from its cache or the network.

    Raises:
        EntryNotFoundError: if the repository is there, the file is not.
        MissingFileError: if it cannot be had for another reason.
    """
    try:
        return Path(hf_hub_download(path, name, revision=revision, local_files_only=settings.local_files_only))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise MissingFileError(_hub_message(path, error, setting)) from error
        raise
    # The hub client raises errors of huggingface_hub, httpx or requests, and OSError, depending on its version.
    except Exception as error:
        raise MissingFileError(_hub_message(path, error, setting)) from error


def _check_folder(folder: Path, index: dict[str, Any], settings: ModelSettings) -> None:
    """Refuse a local pipeline that lacks a component, or whose network is not in safetensors."""
    for name, entry in index.items():
        if (
            name.startswith("_")
            or not isinstance(entry, list)
            or entry[0] is None
            or name in ("safety_checker", "feature_extractor")
        ):
            continue
        if not (folder / name).is_dir():
            raise MissingFileError(f"model.path={settings.path!r} lacks its component {name!r}; copy the whole folder again.")
        if name in ("unet", "transformer") and not any((folder / name).glob("*.safetensors")):
            raise MissingFileError(
                f"model.path={settings.path!r} has no safetensors in {name}/, and rlcm reads no pickled weights; "
                "save the pipeline again with save_pretrained(..., safe_serialization=True)."
            )


def _hub_message(path: str, error: BaseException, setting: str = "model.path") -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{setting}={path!r} is no folder in the working directory and cannot be had from the Hugging Face Hub "
        f"({type(error).__name__}: {reason}). For a folder, correct the path; for the Hub, check the id, the revision, the network, "
        "and access to gated models (`hf auth login`), or download it once and give its folder."
    )


def _read_weights(settings: ModelSettings, name: str, dtype: torch.dtype) -> Any:
    folder = local_folder(settings)
    try:
        return DiffusionPipeline.from_pretrained(
            settings.path if folder is None else folder,
            revision=settings.revision if folder is None else None,
            variant=settings.variant,
            local_files_only=settings.local_files_only or folder is not None,
            use_safetensors=True,
            **{_dtype_argument(): dtype},
            **LEFT_OUT.get(name, {}),
        )
    except (OSError, ValueError) as error:
        if folder is None:
            raise MissingFileError(_hub_message(settings.path, error)) from error
        raise MissingFileError(
            f"model.path={settings.path!r} cannot be loaded ({error}); check that the folder is complete, that its weights are "
            f"safetensors, and that model.variant={settings.variant!r} is among them."
        ) from error


def _dtype_argument() -> str:
    """Return what this version of diffusers calls the precision: an unknown argument would be ignored in silence."""
    renamed = hasattr(getattr(diffusers.utils, "deprecation_utils", None), "_resolve_dtype")
    return "dtype" if renamed else "torch_dtype"


def _lora_files(settings: ModelSettings, name: str) -> list[str | None]:
    """Return the file of each LoRA, None where diffusers is to find it; one that is missing is refused before weights are read."""
    files = []
    for number, lora in enumerate(settings.loras):
        setting = f"model.loras.{number}.path"
        if not hasattr(getattr(diffusers, name), "load_lora_weights"):
            raise ConfigError(f"{setting}={lora.path!r}: diffusers has no LoRA loader for {name}; merge it beforehand.")
        file = lora.weight_name
        if not _is_local(lora.path):
            if not _HUB_ID.fullmatch(lora.path) or lora.path.startswith("."):
                raise MissingFileError(f"{setting}={lora.path!r} is neither a file, a folder nor a Hub id; correct the path.")
            try:
                file = _download(lora.path, lora.weight_name or LORA_FILE, lora.revision, settings, setting).name
            except EntryNotFoundError as error:
                if lora.weight_name:
                    raise MissingFileError(
                        f"{setting}={lora.path!r} has no file {lora.weight_name}; correct weight_name or leave it out."
                    ) from error
        files.append(file)
    return files


def _is_local(path: str) -> bool:
    return existing(path, "model.loras") is not None


def apply_loras(pipeline: Any, settings: ModelSettings, files: Sequence[str | None]) -> None:
    """Add the settings' LoRAs to a pipeline: fused ones into its weights, the others beside them as adapters of their own.

    Args:
        files: the file of each, None where diffusers is to find it.

    Raises:
        ConfigError: if one of them does not fit the pipeline.
        MissingFileError: if one of them is not there.
    """
    scales: dict[str, float] = {}
    # Fused ones first: taking away what is left of them takes away every adapter.
    for number, lora in sorted(enumerate(settings.loras), key=lambda pair: not pair[1].fuse):
        adapter = f"{BASE_ADAPTER}_{number}"
        try:
            pipeline.load_lora_weights(
                str(existing(lora.path, f"model.loras.{number}.path") or lora.path),
                weight_name=files[number],
                revision=lora.revision,
                adapter_name=adapter,
                use_safetensors=True,
                local_files_only=settings.local_files_only,
            )
            if lora.fuse:
                pipeline.fuse_lora(lora_scale=lora.scale, adapter_names=[adapter], safe_fusing=True)
                pipeline.unload_lora_weights()
            else:
                scales[adapter] = lora.scale
        except (OSError, ImportError) as error:
            raise MissingFileError(
                f"model.loras.{number}.path={lora.path!r} (weight_name={lora.weight_name!r}) cannot be read ({error}); "
                "give a folder or Hub id that holds LoRA weights in safetensors, and the file's name if it has several."
            ) from error
        except (ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"model.loras.{number}.path={lora.path!r} does not fit {type(pipeline).__name__} ({error})."
            ) from error
    if scales:
        pipeline.set_adapters(list(scales), list(scales.values()))


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
