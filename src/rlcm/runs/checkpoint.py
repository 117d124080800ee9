"""Checkpoints: everything a run needs to go on, beside its place until whole, with checksums."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm.errors import CheckpointError
from rlcm.runs import digests
from rlcm.runs.refusals import run_errors
from rlcm.runs.serialization import load_state, save_state, write_json

_NAME = re.compile(r"checkpoint-([0-9]{6,12})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a state that was read back whole."""

    path: Path
    round: int
    state: dict[str, Any]


def save_checkpoint(run: Path, round_number: int, state: Mapping[str, Any], keep_last: int) -> Path:
    """Write `checkpoint-<round>` of a run and delete all but the newest `keep_last`.

    The folder is written under another name, flushed to disk and renamed, so that it is whole or absent. A whole one of the
    same round stays as it is: it says the same. Folders of later rounds, which another run may have left, stay as they are.

    Raises:
        RunDirectoryError: if the operating system refuses; older checkpoints are then intact.
    """
    final = run / f"checkpoint-{round_number:06d}"
    partial = run / f".{final.name}.partial"
    with run_errors(final):
        if not _is_sound(final, round_number):
            for left_over in run.glob(".checkpoint-*.partial"):
                shutil.rmtree(left_over, ignore_errors=True)
            partial.mkdir()
            try:
                save_state(partial / "state.safetensors", state)
                write_json(partial / "checksums.json", {"state.safetensors": _digest(partial)})
                _flush_folder(partial)
                _remove(final)
                os.replace(partial, final)
                _flush_folder(run)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    earlier = [path for number, path in _found(run) if number < round_number]
    for path in earlier[: max(0, len(earlier) - keep_last + 1)]:
        shutil.rmtree(path, ignore_errors=True)
    return final


def rounds_kept(run: Path) -> list[int]:
    """Return the rounds after which a run has checkpoints, in order."""
    return [number for number, _ in _found(run)]


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
            return Checkpoint(path, number, _state(path, number)), damaged
        except (OSError, CheckpointError) as error:
            damaged.append(f"{path.name} is damaged ({error})")
    if damaged:
        raise CheckpointError(
            f"{run} has no whole checkpoint to go on from ({'; '.join(damaged)}); start the run again under another name=..., or "
            f"delete its checkpoints and resume it from its beginning."
        )
    return None, damaged


def _state(path: Path, number: int) -> dict[str, Any]:
    """Return the state in a checkpoint's folder.

    Raises:
        CheckpointError: if it is not whole, or not that of round `number`.
        OSError: if it cannot be read.
    """
    file, sums = path / "state.safetensors", path / "checksums.json"
    try:
        # Looked at first, because opening a pipe would wait for ever.
        expected = json.loads(sums.read_text(encoding="utf-8"))["state.safetensors"] if sums.is_file() else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        expected = None
    if expected is None or not file.is_file() or _digest(path) != expected:
        raise CheckpointError(f"{path} does not match its checksum")
    state = load_state(file)
    if state.get("round") != number:
        raise CheckpointError(f"its state is that of round {state.get('round')!r}, so the folder was renamed or copied")
    return state


def _is_sound(path: Path, number: int) -> bool:
    try:
        return bool(_state(path, number))
    except (OSError, CheckpointError):
        return False


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _digest(path: Path) -> str:
    return digests.sha256(path / "state.safetensors")


def _found(run: Path) -> list[tuple[int, Path]]:
    matches = [(match, path) for path in run.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
