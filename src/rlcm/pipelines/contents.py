"""What a model holds, as digests: by these two runs are told apart whose models have one name."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.file_download import repo_folder_name

from rlcm.paths import existing
from rlcm.pipelines.brought import brought_by, variant_of
from rlcm.pipelines.described import INDEX, NOT_NEEDED, local_folder
from rlcm.pipelines.hub import is_commit
from rlcm.pipelines.lora_files import LORA_FILE
from rlcm.pipelines.settings import LoraSettings, ModelSettings
from rlcm.runs import digests

_READ = (".json", ".txt", ".model")


def model_contents(settings: ModelSettings) -> dict[str, str]:
    """Return what the model and its LoRAs hold: of the whole under `model.path` and `model.loras`, and of single files.

    Files are read whole. A model on the Hub is its commit, which is left out where it is not known.

    Raises:
        OSError: if a file cannot be read.
    """
    folder = local_folder(settings)
    found: dict[str, str] = {}
    if folder is None:
        commit = commit_of(settings.path, INDEX, settings.revision, settings.local_files_only)
        if commit:
            found["model.path"] = f"commit {commit}"
    else:
        files = digests.of_files(weight_files(folder, settings.variant))
        found |= {f"model.path: {name}": digest for name, digest in files.items()}
        found["model.path"] = digests.of_value(files)
    loras = [[_lora(lora, settings.local_files_only), lora.scale, lora.fuse] for lora in settings.loras]
    return found | {"model.loras": digests.of_value(loras)}


def pipeline_contents(pipeline: Any, settings: ModelSettings) -> dict[str, str]:
    """Return what a loaded pipeline holds, as `model_contents`: every weight in it, how its scheduler is set, and what
    it brings that no file holds, see `brought_by`."""
    tensors = (
        (f"{name}.{key}", tensor)
        for name, part in sorted(pipeline.components.items())
        if isinstance(part, torch.nn.Module)
        for key, tensor in part.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    )
    config = {key: value for key, value in dict(pipeline.scheduler.config).items() if not key.startswith("_")}
    found = {"model.path": f"loaded {digests.of_value([digests.of_tensors(tensors), config])}"}
    return found | brought_by(pipeline, settings)


def weight_files(folder: Path, variant: str | None) -> dict[str, Path]:
    """Return the files of a pipeline's folder that are read when it is loaded, by their names in it.

    Args:
        variant: as `model.variant`.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry and entry[0] and name not in NOT_NEEDED]
    files = [folder / INDEX]
    for part in sorted(parts):
        inside = sorted(file for file in (folder / part).glob("*") if file.is_file())
        files += [file for file in inside if file.suffix in _READ]
        weights = [file for file in inside if file.suffix == ".safetensors"]
        wanted = [file for file in weights if variant_of(file) == variant]
        files += wanted or weights
    return {str(file.relative_to(folder)): file for file in files}


def commit_of(repository: str, file: str, revision: str | None, local_files_only: bool) -> str | None:
    """Return the commit that a revision of a repository on the Hub is today, from the Hub or its cache; None where neither knows."""
    if is_commit(revision):
        return revision
    # What is wrong with it is said where the model is loaded.
    with contextlib.suppress(Exception):
        hf_hub_download(repository, file, revision=revision, local_files_only=local_files_only)
    try:
        reference = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "refs"
        return (reference / (revision or constants.DEFAULT_REVISION)).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _lora(settings: LoraSettings, local_files_only: bool) -> Any:
    place = existing(settings.path, "model.loras")
    if place is not None and place.is_dir():
        chosen = [place / settings.weight_name] if settings.weight_name else sorted(place.glob("*.safetensors"))
        return digests.of_files({file.name: file for file in chosen if file.is_file()})
    if place is not None:
        return digests.of_file(place)
    return commit_of(settings.path, settings.weight_name or LORA_FILE, settings.revision, local_files_only)
