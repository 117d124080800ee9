"""From `model.path` to a frozen diffusers pipeline on its device; what cannot work is refused before weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from rlcm.errors import ConfigError, MissingFileError
from rlcm.pipelines.acceleration import order_channels_last, require_compiler, use_tf32
from rlcm.pipelines.base import text_encoders
from rlcm.pipelines.described import NOT_NEEDED, bare_part, index_of, local_folder, network_class, pipeline_class
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.hub import hub_message
from rlcm.pipelines.lora_files import locate, read_file
from rlcm.pipelines.loras import BoundLora, apply_loras, bind
from rlcm.pipelines.precision import resolve
from rlcm.pipelines.quantisation import check_quantisation, quantise
from rlcm.pipelines.settings import ModelSettings
from rlcm.runs.weights import load_whole

# What is loaded only to reject or to mark images has no place in training.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "LatentConsistencyModelPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
    "ErnieImagePipeline": {"pe": None, "pe_tokenizer": None},  # which rewrites prompts
}


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
    kinds = {part: network_class(settings, part) for part in index_of(settings) if part not in NOT_NEEDED}
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
        factors = bind(read, said, name, FAMILIES[name].network, lambda part: bare_part(settings, part))
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
