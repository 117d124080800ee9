"""Weights as they lie on disk: read whole or not at all, and put into a model with nothing missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlcm.errors import MissingFileError, WeightsError

_BEGINNINGS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights that it stands for; fetch them with `git lfs pull`",
    b"<": "is a web page, perhaps that of a login, not weights; download the file again",
    b"PK\x03\x04": "is a pickle of PyTorch, which rlcm does not open, as a pickle may run code; take the .safetensors of the same "
    "weights, or have whoever made the file save it as such",
    b"\x80": "is a pickle, which rlcm does not open, as a pickle may run code; take the .safetensors of the same weights, or have "
    "whoever made the file save it as such",
    b"GGUF": "is a GGUF file, which rlcm does not read; take the .safetensors of the same weights",
}
"""What files that are no safetensors begin with, and what to do then."""


def read_weights(file: Path, name: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, on the CPU, and its metadata.

    Args:
        name: what the user calls the file; messages begin with it.

    Raises:
        MissingFileError: if there is no such file.
        WeightsError: if it is no such file, is damaged or empty, or holds NaN or infinity.
    """
    name = name or str(file)
    if not file.is_file():
        raise MissingFileError(f"{name} is no file; correct the path.")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
    # A header can be wrong in many ways; which errors follow depends on the version of safetensors.
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"{name} {_what_else(file, error)}.") from error
    if not tensors:
        raise WeightsError(f"{name} holds no weights at all; copy or download it again.")
    require_finite(tensors.items(), name)
    return tensors, metadata


def require_finite(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Check that tensors hold numbers.

    Args:
        name: what the user calls the place that they are from.

    Raises:
        WeightsError: if one holds NaN or infinity.
    """
    for key, tensor in tensors:
        if not _is_finite(tensor):
            raise WeightsError(f"{name}: {key} holds NaN or infinity, so nothing could be drawn with it; take other weights.")


def require_floats(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Check that tensors are stored in a precision that weights of a LoRA have.

    Args:
        name: what the user calls the place that they are from.

    Raises:
        WeightsError: if one holds whole numbers, truth values or complex numbers.
    """
    for key, tensor in tensors:
        if not tensor.is_floating_point():
            stored = str(tensor.dtype).removeprefix("torch.")
            raise WeightsError(
                f"{name}: {key} is stored as {stored}, which is no precision of a LoRA; save it in fp32, fp16 or bf16."
            )


def load_whole(kind: Any, folder: Path, *, spare: Sequence[str] = (), exact: bool = False, **options: Any) -> Any:
    """Return the model that `kind.from_pretrained` makes of a folder, if the folder holds all of its weights.

    Libraries give random values to what is missing, and only warn.

    Args:
        kind: a class of diffusers or transformers.
        spare: beginnings of the names of weights that nobody asks for, and may be missing.
        exact: whether weights that the model has no place for are an error, too.
        options: of `from_pretrained`.

    Raises:
        WeightsError: if weights are missing, have another shape, are not finite, or (`exact`) are left over.
        OSError, ValueError, KeyError: as `from_pretrained`, if the folder is no such model's.
    """
    try:
        model, found = kind.from_pretrained(folder, output_loading_info=True, **options)
    except (RuntimeError, SafetensorError, ValueError) as error:
        if isinstance(error, ValueError) and "shape" not in str(error):  # diffusers' word for weights of another size
            raise
        raise WeightsError(
            f"{folder}: its weights are damaged, or are not those of its config.json ({_first_line(error)}); copy or download the "
            "folder again."
        ) from error
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(tuple(spare)))
    if missing:
        raise WeightsError(
            f"{folder} lacks weights of its {type(model).__name__}, which would be random: {listed(missing)}; copy or download "
            "the folder again, or give it the config.json that its weights were saved with."
        )
    computed = {name for name, _ in model.named_buffers()}  # such as position embeddings, which some files hold all the same
    left = sorted(set(found["unexpected_keys"]) - computed) if exact else []
    if left:
        raise WeightsError(
            f"{folder} holds weights that its {type(model).__name__} has no place for: {listed(left)}; give it the config.json "
            "that its weights were saved with."
        )
    require_finite(model.named_parameters(), str(folder))
    return model


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, and how many there are besides."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _what_else(file: Path, error: Exception) -> str:
    try:
        with open(file, "rb") as opened:
            head = opened.read(64).lstrip()
    except OSError as refused:
        return f"cannot be read ({refused.strerror or refused}); check its permissions"
    if not head:
        return "is empty; copy or download it again"
    for beginning, found in _BEGINNINGS.items():
        if head.startswith(beginning):
            return found
    return f"is no safetensors file, or is damaged or cut short ({_first_line(error)}); copy or download it again"


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel() or not tensor.is_floating_point() or tensor.is_meta:
        return True
    # One pass without a copy; kinds of 8 bits have no such function.
    low, high = torch.aminmax(tensor.detach() if tensor.element_size() > 1 else tensor.detach().float())
    return bool(low.isfinite() and high.isfinite())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
