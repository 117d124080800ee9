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
from rlcm.rundir import disk_errors
from rlcm.serialization import load_state, save_state, write_json

_NAME = re.compile(r"checkpoint-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a state that was read back whole."""

    path: Path
    round: int
    state: dict[str, Any]


def save_checkpoint(run: Path, round_number: int, state: Mapping[str, Any], keep_last: int) -> Path:
    """Write `checkpoint-<round>` of a run and delete all but the newest `keep_last`.

    The folder is written under another name, flushed to disk and renamed, so that it is whole or absent.

    Raises:
        RunDirectoryError: if the operating system refuses; older checkpoints are then intact.
    """
    final = run / f"checkpoint-{round_number:06d}"
    partial = run / f".{final.name}.partial"
    with disk_errors(final):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            save_state(partial / "state.safetensors", state)
            digest = hashlib.sha256((partial / "state.safetensors").read_bytes()).hexdigest()
            write_json(partial / "checksums.json", {"state.safetensors": digest})
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


def newest_checkpoint(run: Path) -> tuple[Checkpoint, list[str]]:
    """Return the newest checkpoint that is whole, and what was wrong with newer ones.

    Raises:
        CheckpointError: if the run has none.
    """
    damaged: list[str] = []
    for number, path in reversed(_found(run)):
        try:
            expected = json.loads((path / "checksums.json").read_text())["state.safetensors"]
            if hashlib.sha256((path / "state.safetensors").read_bytes()).hexdigest() != expected:
                raise CheckpointError(f"{path} does not match its checksum")
            return Checkpoint(path, number, load_state(path / "state.safetensors")), damaged
        except (OSError, ValueError, KeyError, TypeError, CheckpointError) as error:
            damaged.append(f"{path.name} is damaged ({error})")
    reasons = f" ({'; '.join(damaged)})" if damaged else ""
    raise CheckpointError(f"{run} has no checkpoint to go on from{reasons}; start the run anew under another name=...")


def _found(run: Path) -> list[tuple[int, Path]]:
    matches = [(match, path) for path in run.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
