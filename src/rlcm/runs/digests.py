"""Digests: short names of what files, texts and tensors hold, by which two of them are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_DIGITS, _CHUNK, _THREADS = 32, 1 << 22, 4
_PIECES, _PIECE = 64, 1 << 16
_ELEMENTS = 1 << 16


def of_bytes(data: bytes) -> str:
    """Return the digest of some bytes: 32 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def is_one(name: str) -> bool:
    """Return whether a name looks like a digest."""
    return len(name) == _DIGITS and set(name) <= set("0123456789abcdef")


def of_value(value: Any) -> str:
    """Return the digest of a value of JSON; the order of an object's keys does not count, and what is not JSON counts as its text."""
    return of_bytes(json.dumps(value, sort_keys=True, ensure_ascii=True, default=str).encode())


def of_file(file: Path) -> str:
    """Return the digest of a whole file: the first digits of its SHA-256.

    Raises:
        OSError: if it cannot be read.
    """
    return sha256(file)[:_DIGITS]


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, read a piece at a time: 64 hexadecimal digits.

    Raises:
        OSError: if it cannot be read.
    """
    found = hashlib.sha256()
    with open(file, "rb") as opened:
        while piece := opened.read(_CHUNK):
            found.update(piece)
    return found.hexdigest()


def of_pieces(file: Path) -> str:
    """Return the digest of a file's size and of 64 pieces spread over it, 4 MB in all: it tells other weights of one shape apart.

    A smaller file is read whole.

    Raises:
        OSError: if it cannot be read.
    """
    size = file.stat().st_size
    found = hashlib.sha256(f"{size}\n".encode())
    with open(file, "rb") as opened:
        for number in range(_PIECES):
            if size > _PIECES * _PIECE:
                opened.seek(number * (size - _PIECE) // (_PIECES - 1))
            found.update(opened.read(_PIECE))
    return found.hexdigest()[:_DIGITS]


def of_source(file: Path) -> str:
    """Return the digest of a file of code, which is the same with other line endings.

    Raises:
        OSError: if it cannot be read.
    """
    return of_bytes(file.read_bytes().replace(b"\r\n", b"\n"))


def of_files(files: Mapping[str, Path], digest: Callable[[Path], str] = of_file) -> dict[str, str]:
    """Return the digest of every file, by the name that is given to it; several are read at a time.

    Raises:
        OSError: if one of them cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as threads:  # hashing lets other threads run
        return dict(zip(files, threads.map(digest, files.values()), strict=True))


def of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the digest of named tensors: names, shapes, precisions and every element."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        for part, inner in _plain(name, tensor.detach()):
            found.update(f"{part} {inner.dtype} {list(inner.shape)}\n".encode())
            flat = inner.to("cpu", copy=False).contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()[:_DIGITS]


def of_some_elements(arrays: Iterable[tuple[str, Tensor | np.ndarray]]) -> str:
    """Return the digest of named tensors and arrays, as `of_tensors`, but of a large one by some 65,536 elements spread over it."""

    def some(array: Any, count: int) -> Any:
        step = -(-count // _ELEMENTS)
        return array.reshape(-1)[::step] if step > 1 else array

    tensors = []
    for name, array in arrays:
        if isinstance(array, Tensor) and array.layout is torch.sparse_coo:
            sparse = array.detach().coalesce()
            tensors += [(f"{name} indices", sparse.indices()), (name, sparse.values())]
        elif isinstance(array, Tensor):
            tensors.append((f"{name} {list(array.shape)}", some(array.detach(), array.numel())))
        else:
            held = np.ascontiguousarray(some(array, array.size)).tobytes()
            tensors.append(
                (f"{name} {array.shape} {array.dtype}", torch.frombuffer(bytearray(held or b" "), dtype=torch.uint8))
            )
    return of_tensors(tensors)


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain tensors that a tensor is made of: a quantised one holds several."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for attribute in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{attribute}", getattr(tensor, attribute))
