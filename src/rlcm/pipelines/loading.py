"""From `model.path` to a frozen diffusers pipeline on its device; what cannot work is refused before weights are read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download

from rlcm.builtin import model_path
from rlcm.errors import ConfigError, MissingFileError
from rlcm.pipelines.base import text_encoders
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.precision import resolve
from rlcm.pipelines.settings import LoraSettings, ModelSettings

BUILTIN = {"builtin": "student", "builtin-teacher": "teacher"}
# What is loaded only to reject or to mark images has no place in training.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "LatentConsistencyModelPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
BASE_ADAPTER = "base"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_pipeline(settings: ModelSettings) -> Any:
    """Return the pipeline that the settings name: frozen, in eval mode, on its device, with their LoRAs applied.

    Raises:
        MissingFileError: if the model, or a file that it needs, is not there.
        ConfigError: if it is no supported pipeline, or a setting does not fit it or this machine.
    """
    device, dtype = resolve(settings)
    name = pipeline_class(settings)
    _check_loras(settings, name)
    pipeline = _read_weights(settings, name, dtype)
    if name == "StableDiffusionXLPipeline" and pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
        pipeline.vae.float()  # this VAE's activations overflow in fp16
    for lora in settings.loras:
        apply_lora(pipeline, lora, settings)
    waiting = text_encoders(pipeline) if settings.offload_text_encoders else []
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            if not any(component is encoder for encoder in waiting):
                component.to(device)
    _save_memory(pipeline, settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_class(settings: ModelSettings) -> str:
    """Return the name of the pipeline class of `model.path`, having read nothing but its model_index.json.

    Raises:
        MissingFileError, ConfigError: as `load_pipeline`.
    """
    file = _index_file(settings)
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        name = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not a pipeline's index ({error}); save the pipeline again with save_pretrained."
        ) from error
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


def local_folder(settings: ModelSettings) -> Path | None:
    """Return the folder of a packaged or local model, None for a Hub id.

    Raises:
        MissingFileError: if the path is neither a folder that exists nor of the form of a Hub id.
    """
    if settings.path in BUILTIN:
        return model_path(BUILTIN[settings.path])
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        return folder
    if _HUB_ID.fullmatch(settings.path) and not settings.path.startswith("."):
        return None
    raise MissingFileError(
        f"model.path={settings.path!r} is neither a folder nor a Hub id; give builtin, builtin-teacher, the folder of a "
        "diffusers pipeline, or a Hub id such as SimianLuo/LCM_Dreamshaper_v7."
    )


def _index_file(settings: ModelSettings) -> Path:
    folder = local_folder(settings)
    if folder is None:
        try:
            return Path(
                hf_hub_download(
                    settings.path, "model_index.json", revision=settings.revision, local_files_only=settings.local_files_only
                )
            )
        # The hub client raises errors of huggingface_hub, httpx or requests, and OSError, depending on its version.
        except Exception as error:
            raise MissingFileError(_hub_message(settings, error)) from error
    index = folder / "model_index.json"
    if not index.is_file():
        raise MissingFileError(
            f"model.path={settings.path!r} has no model_index.json, so it is not a diffusers pipeline; "
            "give the folder that pipeline.save_pretrained wrote."
        )
    return index


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


def _hub_message(settings: ModelSettings, error: BaseException) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"model.path={settings.path!r} is no local folder and cannot be had from the Hugging Face Hub "
        f"({type(error).__name__}: {reason}); check the id, the revision, the network, and access to gated models "
        "(`hf auth login`), or download it once and give its folder."
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
            raise MissingFileError(_hub_message(settings, error)) from error
        raise MissingFileError(
            f"model.path={settings.path!r} cannot be loaded ({error}); check that the folder is complete, that its weights are "
            f"safetensors, and that model.variant={settings.variant!r} is among them."
        ) from error


def _dtype_argument() -> str:
    """Return what this version of diffusers calls the precision: an unknown argument would be ignored in silence."""
    renamed = hasattr(getattr(diffusers.utils, "deprecation_utils", None), "_resolve_dtype")
    return "dtype" if renamed else "torch_dtype"


def _check_loras(settings: ModelSettings, name: str) -> None:
    """Refuse what can be refused before weights are read: a pipeline that takes no LoRAs, and local LoRAs that are missing."""
    for lora in settings.loras:
        if not hasattr(getattr(diffusers, name), "load_lora_weights"):
            raise ConfigError(f"model.loras: diffusers has no LoRA loader for {name}; merge {lora.path!r} beforehand.")
        if not Path(lora.path).expanduser().exists() and (not _HUB_ID.fullmatch(lora.path) or lora.path.startswith(".")):
            raise MissingFileError(f"model.loras: {lora.path!r} is neither a file, a folder nor a Hub id; correct the path.")


def apply_lora(pipeline: Any, lora: LoraSettings, settings: ModelSettings) -> None:
    """Add one LoRA to the pipeline's weights. Adapters of their own would be switched off when the trained one is added.

    Raises:
        ConfigError: if this LoRA does not fit the pipeline.
        MissingFileError: if it is not there.
    """
    try:
        pipeline.load_lora_weights(
            lora.path,
            weight_name=lora.weight_name,
            adapter_name=BASE_ADAPTER,
            use_safetensors=True,
            local_files_only=settings.local_files_only,
        )
        pipeline.fuse_lora(lora_scale=lora.scale, adapter_names=[BASE_ADAPTER], safe_fusing=True)
        pipeline.unload_lora_weights()
    except (OSError, ImportError) as error:
        raise MissingFileError(
            f"model.loras: {lora.path!r} (weight_name={lora.weight_name!r}) cannot be read ({error}); "
            "give a folder or Hub id that holds LoRA weights in safetensors, and the file's name if it has several."
        ) from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"model.loras: {lora.path!r} does not fit {type(pipeline).__name__} ({error}).") from error


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
