"""Checkpoints: everything a run needs to go on, beside its place until whole, with checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm.errors import CheckpointError
from rlcm.runs.rundir import run_errors
from rlcm.runs.serialization import load_state, save_state, write_json

_NAME = re.compile(r"checkpoint-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a state that was read back whole."""

    path: Path
    round: int
    state: dict[str, Any]


def save_checkpoint(run: Path, round_number: int, state: Mapping[str, Any], keep_last: int) -> Path:
    """Write `checkpoint-<round>` of a run and delete all but the newest `keep_last`.

    The folder is written under another name, flushed to disk and renamed, so that it is whole or absent. A whole one of the
    same round stays as it is: it says the same.

    Raises:
        RunDirectoryError: if the operating system refuses; older checkpoints are then intact.
    """
    final = run / f"checkpoint-{round_number:06d}"
    partial = run / f".{final.name}.partial"
    with run_errors(final):
        if not (final.exists() and _is_whole(final)):
            for left_over in run.glob(".checkpoint-*.partial"):
                shutil.rmtree(left_over, ignore_errors=True)
            partial.mkdir()
            try:
                save_state(partial / "state.safetensors", state)
                write_json(partial / "checksums.json", {"state.safetensors": _digest(partial)})
                _flush_folder(partial)
                if final.exists():
                    shutil.rmtree(final)
                os.replace(partial, final)
                _flush_folder(run)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    for _, path in _found(run)[:-keep_last]:
        shutil.rmtree(path, ignore_errors=True)
    return final


def newest_checkpoint(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is whole, and what was wrong with newer ones; None where the run has written none yet.

    Raises:
        CheckpointError: if the run has checkpoints, all of them damaged, or its folder cannot be read.
    """
    damaged: list[str] = []
    try:
        candidates = _found(run)
    except OSError as error:
        raise CheckpointError(
            f"{run} cannot be read ({error.strerror or error}); check the path and its permissions."
        ) from error
    for number, path in reversed(candidates):
        try:
            if not _is_whole(path):
                raise CheckpointError(f"{path} does not match its checksum")
            return Checkpoint(path, number, load_state(path / "state.safetensors")), damaged
        except (OSError, CheckpointError) as error:
            damaged.append(f"{path.name} is damaged ({error})")
    if damaged:
        raise CheckpointError(
            f"{run} has no whole checkpoint to go on from ({'; '.join(damaged)}); start the run anew under another name=..., or "
            f"delete its checkpoints and resume it from its beginning."
        )
    return None, damaged


def _is_whole(path: Path) -> bool:
    """Return whether a checkpoint's state matches its checksum.

    Raises:
        OSError: if the state cannot be read.
    """
    try:
        expected = json.loads((path / "checksums.json").read_text(encoding="utf-8"))["state.safetensors"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return (path / "state.safetensors").is_file() and _digest(path) == expected


def _digest(path: Path) -> str:
    return hashlib.sha256((path / "state.safetensors").read_bytes()).hexdigest()


def _found(run: Path) -> list[tuple[int, Path]]:
    matches = [(match, path) for path in run.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
