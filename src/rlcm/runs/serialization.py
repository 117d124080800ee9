"""Nested states in one safetensors file: no pickle, checked on reading, written beside their place and renamed into it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from rlcm.errors import CheckpointError

_TENSOR = "__tensor__"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nest of dicts, lists, tensors and JSON values to `path`, atomically.

    Args:
        path: the file to write; it is complete or absent, never half.
        state: tensors may stand anywhere in the nest; dict keys are strings or integers.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_strip(state, tensors))
    write_bytes(path, to_bytes(tensors, metadata={"structure": structure}))


def load_state(path: Path) -> dict[str, Any]:
    """Return what `save_state` wrote, tensors on the CPU.

    Raises:
        CheckpointError: if the file is missing, cut short or not of this format.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            structure = json.loads((file.metadata() or {})["structure"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = _restore(structure, tensors)
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__} in place of a dict")
    # What a program of another kind wrote can be wrong in any way.
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged ({error}); use an earlier checkpoint, or start the run again."
        ) from error
    return state


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that after a crash the old file, the new one, or none is there, but no mixture."""
    if _is_device(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.unlink(missing_ok=True)  # what a crash left, or anybody put there
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _is_device(path: Path) -> bool:
    """Return whether a path is the machine's, such as /dev/stdout, and not to be replaced by a file: root may do that."""
    folder = path.absolute().parent.resolve()
    return path.is_char_device() or path.is_block_device() or folder == Path("/dev") or Path("/proc") in folder.parents


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file that takes the place of `path` once it is whole; where writing fails, the old one stays."""
    if _is_device(path) or path.is_fifo():
        yield path
        return
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f".partial-{threading.get_native_id()}{path.suffix}")  # libraries go by the ending
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def _strip(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        # Pairs, not an object: optimiser states have integer keys, which JSON would turn into strings.
        return {"pairs": [[key, _strip(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_strip(item, tensors) for item in value]
    return value


def _restore(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _restore(item, tensors) for key, item in value["pairs"]}
    return value
