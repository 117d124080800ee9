"""A finished run in the form that other tools read: `rlcm export`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from rlcm.errors import UsageError
from rlcm.pipelines import FAMILIES, bare_network, load_pipeline, make_denoiser
from rlcm.pipelines.described import pipeline_class
from rlcm.pipelines.lora_keys import kohya_flux, kohya_sdxl, kohya_unet, tensors_of
from rlcm.pipelines.precision import DTYPES
from rlcm.pipelines.settings import ModelSettings
from rlcm.policy.adapter import Factors, add_lora
from rlcm.runs.own_folder import OwnFolder, is_run, refuse_runs
from rlcm.runs.refusals import disk_errors, require_writable
from rlcm.runs.serialization import write_bytes
from rlcm.runs.weights import read_weights
from rlcm.sharing.tuned import tuned_lora
from rlcm.training.config import TrainConfig
from rlcm.training.final import WEIGHTS_NAME, finished_run, require_whole_base

Format = Literal["diffusers", "kohya", "comfyui", "merged"]
ExportPrecision = Literal["fp32", "fp16", "bf16"]

MADE_BY, OURS = "made_by", "rlcm export"
"""In the header of an exported LoRA: what may be replaced by another export."""
_UNETS: tuple[Format, ...] = ("diffusers", "kohya", "comfyui", "merged")
AVAILABLE: dict[str, tuple[Format, ...]] = {
    "LatentConsistencyModelPipeline": _UNETS,
    "StableDiffusionPipeline": _UNETS,
    "StableDiffusionXLPipeline": _UNETS,
    "FluxPipeline": _UNETS,
    "SanaSprintPipeline": ("diffusers", "merged"),
    "ZImagePipeline": ("diffusers", "comfyui", "merged"),
    "StableDiffusion3Pipeline": ("diffusers", "comfyui", "merged"),
    "QwenImagePipeline": ("diffusers", "comfyui", "merged"),
    "Flux2KleinPipeline": ("diffusers", "merged"),
    "Krea2Pipeline": ("diffusers", "merged"),
    "ErnieImagePipeline": ("diffusers", "merged"),
    "PixArtAlphaPipeline": ("comfyui", "merged"),
    "PixArtSigmaPipeline": ("comfyui", "merged"),
    "ConsistencyModelPipeline": ("merged",),
}
"""The formats of each kind of pipeline: those that a reader exists for."""

_OF_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".zip", ".txt", ".json", ".png", ".jpg")
"""Endings of names that are not those of folders."""


def export_run(run: Path, form: Format, output: Path | None = None, precision: ExportPrecision = "fp32") -> Path:
    """Write the result of a finished run in a format; return the file, or for `merged` the folder.

    Args:
        run: the run's folder.
        form: `diffusers`, `kohya` or `comfyui`, a LoRA for that tool; or `merged`, the whole pipeline with the LoRA in it.
        output: a .safetensors file or a folder; left out, `export/` in the run.
        precision: of the written weights.

    Raises:
        MissingFileError: if the run has not ended, or its model is not there.
        WeightsError: if its LoRA is damaged, or another run's.
        UsageError: if the format does not exist for this model, the weights do not fit the precision, or the output cannot be what is
            asked for.
        RunDirectoryError: if the output cannot be written.
    """
    config, weights = finished_run(run)
    kind = pipeline_class(config.model)
    if form not in AVAILABLE[kind]:
        raise UsageError(
            f"--format {form}: there is no such format for a {kind}, as no tool reads it; "
            f"choose {' or '.join(f'--format {name}' for name in AVAILABLE[kind])}."
        )
    if form == "merged":
        folder = output or run / "export" / "merged"
        _check_folder(folder)
        refuse_runs(folder, "rlcm export")
        require_whole_base(run)
        return _save_pipeline(merged_pipeline(config, weights, precision), folder)
    name = WEIGHTS_NAME if form == "diffusers" else f"{config.name or run.resolve().name}.safetensors"
    file, own = _place(output or run / "export" / form, name)
    dtype = DTYPES[precision]
    lora = tuned_lora(config, weights)
    if form == "diffusers":
        tensors, metadata = {key: value.to(dtype) for key, value in read_weights(weights)[0].items()}, {"format": "pt"}
    else:
        tensors, metadata = _renamed(config, lora, kind, form, dtype)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UsageError(f"--precision {precision}: some of the LoRA's weights are too large for it; choose --precision fp32.")
    if own is not None:
        own.begin()
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, to_bytes(tensors, metadata=metadata | {MADE_BY: OURS}))
    if own is not None:
        own.end()
    return file


def merged_pipeline(config: TrainConfig, weights: Path, precision: ExportPrecision = "fp32") -> Any:
    """Return the run's pipeline on the CPU, with its scheduler, and with every LoRA added to the weights.

    Raises:
        MissingFileError, ConfigError: as `load_pipeline`.
    """
    loras = [lora.model_dump() | {"fuse": True} for lora in config.model.loras]
    changes: dict[str, Any] = {"precision": precision, "device": "cpu", "loras": loras, "offload_text_encoders": False}
    changes["quantisation"] = "none"  # the LoRA is added to whole weights
    model = ModelSettings.model_validate(config.model.model_dump() | changes)
    lora = tuned_lora(config, weights)
    denoiser = make_denoiser(load_pipeline(model), config.sampler, model)
    add_lora(denoiser.module, lora)
    return denoiser.pipeline


def _renamed(
    config: TrainConfig, lora: dict[str, Factors], kind: str, form: Format, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a LoRA for kohya's scripts or for ComfyUI."""
    metadata = {"format": "pt", "ss_network_dim": str(config.lora.rank), "ss_network_alpha": f"{config.lora.alpha:g}"}
    if form == "comfyui" and FAMILIES[kind].network == "transformer":
        return tensors_of({f"transformer.{name}": factors for name, factors in lora.items()}, dtype), metadata
    metadata["ss_network_module"] = "networks.lora_flux" if kind == "FluxPipeline" else "networks.lora"
    try:
        if kind == "FluxPipeline":
            network: Any = bare_network(config.model).config
            named = kohya_flux(lora, network.num_attention_heads * network.attention_head_dim)
        elif kind == "StableDiffusionXLPipeline":
            network = bare_network(config.model).config
            named = kohya_sdxl(lora, network.layers_per_block, network.up_block_types)
        else:
            named = kohya_unet(lora)
    except ValueError as error:
        others = " or ".join(f"--format {name}" for name in AVAILABLE[kind] if name not in ("kohya", "comfyui"))
        raise UsageError(f"--format {form}: of the layers in lora.target_modules, {error} Choose {others}.") from None
    return tensors_of(named, dtype), metadata


def _place(output: Path, name: str) -> tuple[Path, OwnFolder | None]:
    """Return the file of an exported LoRA, and the folder that it is written into under a name of ours.

    Raises:
        UsageError: if it would replace a file of a run or, in a folder, one that no export wrote.
    """
    if output.suffix == ".safetensors":
        if not is_run(output.parent.resolve()):  # in its first level a run has no weights
            refuse_runs(output.parent, "rlcm export")
        if output.is_dir():
            raise UsageError(f"-o {str(output)!r} is a folder; a name that ends in .safetensors must be a file's.")
        if os.path.lexists(output) and not _is_ours(output):
            raise UsageError(
                f"-o {str(output)!r} would replace a file that `rlcm export` did not write; delete it, or give another name."
            )
        return output, None
    if os.path.lexists(output) and not output.is_dir():
        raise UsageError(
            f"-o {str(output)!r} is a file already, and not a .safetensors file; give a name that ends in .safetensors, or a folder."
        )
    if output.suffix.lower() in _OF_FILES and not output.is_dir():
        raise UsageError(
            f"-o {str(output)!r} ends like a file, and would become a folder; give a name that ends in .safetensors, or a folder."
        )
    own = OwnFolder(output, "rlcm export", [name])
    own.require()
    return output / name, own


def _is_ours(file: Path) -> bool:
    """Return whether a file is a LoRA that an export wrote, by its header alone."""
    try:
        with safe_open(file, framework="pt") as opened:
            return bool((opened.metadata() or {}).get(MADE_BY) == OURS)
    except Exception:  # whatever it is
        return False


def _check_folder(folder: Path) -> None:
    """Refuse a folder that a pipeline cannot be written into without mixing it with what is there."""
    if folder.suffix.lower() in _OF_FILES and not folder.is_dir():
        raise UsageError(f"-o {str(folder)!r}: a merged pipeline is a folder, not a file; leave {folder.suffix} out.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something already; delete it, or choose another folder with -o.")
    require_writable(folder)


def _save_pipeline(pipeline: Any, folder: Path) -> Path:
    """Write a pipeline into a folder that is not there, or empty; where it cannot be written, it is empty."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            pipeline.save_pretrained(partial, safe_serialization=True)
            parts = sorted(
                partial.iterdir(), key=lambda part: part.name == "model_index.json"
            )  # what makes it a pipeline comes last
            for part in parts:
                os.rename(part, folder / part.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
