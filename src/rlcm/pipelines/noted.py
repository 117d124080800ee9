"""Whether a model is still what a run was trained on, told in a moment: large files are compared by pieces of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlcm.paths import existing
from rlcm.pipelines.contents import commit_of, weight_files
from rlcm.pipelines.described import INDEX, local_folder
from rlcm.pipelines.lora_files import LORA_FILE
from rlcm.pipelines.settings import LoraSettings, ModelSettings
from rlcm.runs import digests

SMALL = 1 << 25
"""Bytes of a file that is read whole."""


def pieces_of(settings: ModelSettings) -> dict[str, str]:
    """Return what a run notes beside the digests of `model_contents`: of large files those of pieces, and of LoRAs those by name.

    Raises:
        OSError: if a file cannot be read.
    """
    folder = local_folder(settings)
    files = {} if folder is None else weight_files(folder, settings.variant)
    large = {f"model.path: {name}": digests.of_pieces(file) for name, file in files.items() if file.stat().st_size > SMALL}
    return large | dict(_loras(settings))


def changed_since(settings: ModelSettings, contents: Mapping[str, Any], pieces: Mapping[str, Any]) -> list[str]:
    """Return what of a model and its LoRAs is another than was noted, by its names; what cannot be compared is left out.

    Args:
        contents: of `model_contents`, when the run began.
        pieces: of `pieces_of`, at that time; empty for a run of an earlier version.

    Raises:
        OSError: if a file cannot be read.
    """
    folder, path = local_folder(settings), contents.get("model.path")
    found = []
    if folder is None:
        commit = commit_of(settings.path, INDEX, settings.revision, True)
        if commit and str(path).startswith("commit ") and path != f"commit {commit}":
            found.append(f"model.path: {path}, now {commit}")
    else:
        noted = {key.removeprefix("model.path: "): value for key, value in contents.items() if key.startswith("model.path: ")}
        files = weight_files(folder, settings.variant) if noted else {}
        found += [
            f"model.path: {name}"
            for name in sorted({*noted, *files})
            if name not in files or name not in noted or _is_other(files[name], noted[name], pieces.get(f"model.path: {name}"))
        ]
    now = dict(_loras(settings)) if pieces else {}
    before = {key: value for key, value in pieces.items() if key.startswith("model.loras")}
    return found + sorted(key for key in {*now, *before} if now.get(key) != before.get(key))


def _is_other(file: Path, whole: Any, pieces: Any) -> bool:
    if file.stat().st_size <= SMALL:
        return bool(digests.of_file(file) != whole)
    return pieces is not None and bool(digests.of_pieces(file) != pieces)


def _loras(settings: ModelSettings) -> Iterator[tuple[str, str]]:
    for number, lora in enumerate(settings.loras):
        key = f"model.loras.{number}"
        files = _files(lora)
        if files is None:
            commit = commit_of(lora.path, lora.weight_name or LORA_FILE, lora.revision, True)
            yield key, f"commit {commit}"
        for file in files or ():
            yield f"{key}: {file.name}", digests.of_pieces(file)


def _files(lora: LoraSettings) -> list[Path] | None:
    place = existing(lora.path, "model.loras")
    if place is None or not place.is_dir():
        return None if place is None else [place]
    return [place / lora.weight_name] if lora.weight_name else sorted(place.glob("*.safetensors"))
