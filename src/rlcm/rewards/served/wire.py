"""What travels between the client and the server of rewards: arrays or PNG files in, JSON out, no pickle.

A request is one of
    application/x-npz     a NumPy archive of `images` [B, 3, h, w] (uint8 in 0 .. 255, or float32 in [0, 1]) and `request`, the
                          UTF-8 bytes of the JSON object below without its `images`
    application/json      {"images": [PNG files in base64], "prompts": [B texts], "metadata": [B objects], "rewards": [labels]}
and the answer is {"scores": {label: [B numbers]}}. `metadata` and `rewards` may be left out.
An answer holds the rewards that were asked for; or else all that `GET /health` names in {"rewards": [labels]}, where it names some.
Components of a reward stand as `label/component`.
"""

from __future__ import annotations

import base64
import io
import json
import math
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from rlcm.rewards.image.pixels import from_uint8, to_levels, to_png, to_uint8

NPZ, JSON = "application/x-npz", "application/json"
LONGEST_DIRECTORY = 4096
"""Bytes of a zip archive's list of members; two take about 200."""
LONGEST_HEADER = 2**16
"""Bytes of an array's header; it takes about 128."""
LONGEST_TEXT = 16 * 2**20
"""Bytes of prompts and metadata beside arrays."""
MOST_VALUES = 2**20
"""Commas, colons and brackets in a request's JSON."""
MOST_CHUNKS = 1000
"""Parts of a PNG file beside its pixels."""
Encoding = Literal["uint8", "float32", "png"]


class ScoreRequest(BaseModel):
    """Pictures to score, each with its prompt."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[str] = Field(min_length=1, description="One text a picture.")
    metadata: list[dict[str, Any]] | None = Field(None, description="One object a picture, for rewards that ask for it.")
    rewards: list[str] | None = Field(None, min_length=1, description="Labels of the rewards wanted; all of them if left out.")


class PngRequest(ScoreRequest):
    """Pictures to score as PNG files in base64, all of one size, each with its prompt."""

    images: list[str] = Field(min_length=1, description="PNG files in base64.")


class ScoreAnswer(BaseModel):
    """One number a picture from every reward."""

    scores: dict[str, list[float]]


class WireError(ValueError):
    """The bytes are not a request or an answer as described above, or exceed a limit."""


class Limits(BaseModel):
    """How large a request may be once it is unpacked."""

    images: int
    side: int
    bytes: int
    """Of the pictures as fp32 tensors."""

    def check(self, count: int, height: int, width: int) -> None:
        """Raise WireError if pictures of this number and size exceed a limit."""
        if not 1 <= count <= self.images:
            raise WireError(f"{count} pictures are not in 1 .. {self.images}.")
        if not (1 <= height <= self.side and 1 <= width <= self.side):
            raise WireError(f"pictures of {width} x {height} pixels are not in 1 .. {self.side} a side.")
        if 12 * count * height * width > self.bytes:
            raise WireError(f"{count} pictures of {width} x {height} pixels exceed {self.bytes} bytes as tensors; send fewer.")


def encode_request(
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]] | None = None,
    rewards: Sequence[str] | None = None,
    *,
    encoding: Encoding = "uint8",
) -> tuple[bytes, str]:
    """Return the body of a request and its content type.

    Args:
        images: [B, 3, h, w] in [0, 1]. "uint8" and "png" round them to 256 levels, "float32" keeps them.

    Raises:
        TypeError: if the metadata are not JSON values.
    """
    request: dict[str, Any] = {"prompts": list(prompts)}
    if metadata is not None:
        request["metadata"] = [dict(entry) for entry in metadata]
    if rewards is not None:
        request["rewards"] = list(rewards)
    if encoding == "png":
        request["images"] = [base64.b64encode(to_png(level)).decode() for level in to_uint8(images)]
        return json.dumps(request).encode(), JSON
    pixels = (
        images.detach().float().clamp(0, 1).cpu().numpy() if encoding == "float32" else to_uint8(images).transpose(0, 3, 1, 2)
    )
    buffer = io.BytesIO()
    np.savez(buffer, images=np.ascontiguousarray(pixels), request=np.frombuffer(json.dumps(request).encode(), np.uint8))
    return buffer.getvalue(), NPZ


def decode_request(body: bytes, content_type: str, limits: Limits) -> tuple[Tensor, ScoreRequest]:
    """Return the images [B, 3, h, w], float in [0, 1], and the rest of a request.

    Raises:
        WireError: if anything about the bytes is wrong. Nothing larger than the limits is ever unpacked.
    """
    try:
        if content_type == JSON:
            picture_request = PngRequest.model_validate_json(_measured(body))
            images = _from_png(picture_request.images, limits)
            request: ScoreRequest = picture_request
        else:
            images, request = _from_npz(body, limits)
    except ValidationError as error:
        texts = [f"{'.'.join(map(str, entry['loc'])) or 'body'}: {entry['msg']}" for entry in error.errors()[:5]]
        raise WireError("; ".join(texts)) from error
    if len(request.prompts) != len(images):
        raise WireError(f"{len(request.prompts)} prompts do not fit {len(images)} images.")
    if request.metadata is not None and len(request.metadata) != len(images):
        raise WireError(f"{len(request.metadata)} metadata entries do not fit {len(images)} images.")
    return images, request


def read_health(body: bytes | None) -> dict[str, Any]:
    """Return what a server says of itself, as far as it is understood: its rewards, and whether it admits the caller."""
    try:
        found = json.loads(body or b"")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    health: dict[str, Any] = {"admitted": False} if found.get("admitted") is False else {}
    rewards = found.get("rewards")
    if isinstance(rewards, list) and all(isinstance(label, str) for label in rewards):
        health["rewards"] = rewards
    return health


def decode_answer(body: bytes, batch: int) -> dict[str, list[float]]:
    """Return the scores by label, [B] finite numbers each.

    Raises:
        WireError: if the bytes are not such an answer for `batch` pictures.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the answer is not JSON ({error}): {body[:80]!r}") from error
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, dict) or not scores:
        raise WireError(f"the answer has no object `scores`: {body[:80]!r}")
    for label, values in scores.items():
        if not isinstance(values, list) or len(values) != batch:
            found = f"{len(values)} numbers" if isinstance(values, list) else type(values).__name__
            raise WireError(f"{label} has {found} for {batch} pictures.")
        for index, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
                raise WireError(f"{label} has {repr(value)[:40]} for picture {index}, which is no finite number.")
    return {str(label): [float(value) for value in values] for label, values in scores.items()}


def _from_png(texts: Sequence[str], limits: Limits) -> Tensor:
    if len(texts) > limits.images:
        raise WireError(f"{len(texts)} pictures are not in 1 .. {limits.images}.")
    levels: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    size = (0, 0)
    for index, text in enumerate(texts):  # one at a time: a file may hold megabytes beside its pixels, packed small
        with _open_png(index, text) as file:
            size = size if levels else file.size
            limits.check(len(texts), size[1], size[0])
            if file.size != size:
                raise WireError(f"images.{index} has {file.size} pixels and images.0 has {size}; send pictures of one size.")
            try:
                levels.append(to_levels(file))
            except Exception as error:  # a damaged file may fail anywhere in its decoder
                raise WireError(f"images.{index} is a damaged PNG file ({type(error).__name__}).") from error
        if levels[-1].shape != levels[0].shape:
            raise WireError(f"images.{index} is turned by its EXIF data and images.0 is not; send pictures of one size.")
    return from_uint8(np.stack(levels))


def _open_png(index: int, text: str) -> Image.Image:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise WireError(f"images.{index} is not in base64{_why_not(text)}.") from error
    try:
        return Image.open(io.BytesIO(_checked(index, data)), formats=["PNG"])
    except WireError:
        raise
    except Image.DecompressionBombError as error:
        raise WireError(f"images.{index} has more pixels than are accepted; send a smaller picture.") from error
    except (ValueError, OSError, SyntaxError) as error:
        if "TEXT_CHUNK" in str(error):  # Pillow's limit
            raise WireError(f"images.{index} holds a long text beside its pixels; save it again without that.") from error
        raise WireError(f"images.{index} is not a PNG file, or a damaged one ({type(error).__name__}).") from error


def _why_not(text: str) -> str:
    if text.lstrip().lower().startswith("data:"):
        return ": it begins as an address, data:...; send what follows its comma"
    return "; leave out line breaks and spaces" if text != "".join(text.split()) else ""


def _checked(index: int, data: bytes) -> bytes:
    """Return a PNG file, unless it has very many parts beside its pixels: texts and the like, each of which takes its time."""
    at, others = 8, 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        others += not length or data[at + 4 : at + 8] != b"IDAT"
        if others > MOST_CHUNKS:
            raise WireError(
                f"images.{index} holds more than {MOST_CHUNKS:,} parts that are no pixels; save it again without them."
            )
        at += 12 + length
    return data


def _from_npz(body: bytes, limits: Limits) -> tuple[Tensor, ScoreRequest]:
    try:
        _check_directory(body)
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = archive.infolist()
            if sorted(info.filename for info in members) != ["images.npy", "request.npy"]:
                raise WireError("the archive must hold the arrays `images` and `request`, and nothing else.")
            pixels = _read_array(archive, "images.npy", (np.uint8, np.float32), 4, limits.bytes, limits)
            request = _read_array(archive, "request.npy", (np.uint8,), 1, LONGEST_TEXT)
    except WireError:
        raise
    except Exception as error:  # a damaged archive may fail anywhere in its decoders
        raise WireError(f"the body is not an npz archive ({type(error).__name__}: {error}).") from error
    images = torch.from_numpy(pixels.copy()).float()
    if pixels.dtype == np.uint8:
        images /= 255
    elif not bool(((images >= 0) & (images <= 1)).all()):
        raise WireError("float images must lie in [0, 1]; NaN is not there.")
    return images, ScoreRequest.model_validate_json(_measured(request.tobytes()))


def _check_directory(body: bytes) -> None:
    """Refuse an archive whose list of members is long or hidden: Python reads all of it into memory before one can look at it."""
    end = body[-22:]
    if end[:4] != b"PK\5\6" or body[-42:-38] == b"PK\6\7":
        raise WireError("the body is not an npz archive (its list of members does not stand at its end).")
    if int.from_bytes(end[12:16], "little") > LONGEST_DIRECTORY:
        raise WireError("the archive must hold the arrays `images` and `request`, and nothing else.")


def _read_array(
    archive: zipfile.ZipFile, name: str, dtypes: Sequence[Any], ndim: int, most: int, limits: Limits | None = None
) -> np.ndarray[Any, np.dtype[Any]]:
    """Return one array of an archive, having unpacked its header, and, where that is right, as many bytes as it says."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise WireError(f"{name} is packed by method {info.compress_type}; use 0 (stored) or 8 (deflated), and no password.")
    if info.file_size > most + LONGEST_HEADER:
        raise WireError(f"{name} unpacks to more than {most} bytes.")
    with archive.open(info) as member:
        head = io.BytesIO(member.read(LONGEST_HEADER))
        version = np.lib.format.read_magic(head)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(head)
        if dtype not in [np.dtype(d) for d in dtypes] or len(shape) != ndim or fortran:
            raise WireError(f"{name} has type {dtype} and shape {shape}; see the description of the request.")
        if limits is not None:
            if shape[1] != 3:
                raise WireError(f"images must be [B, 3, h, w], not {list(shape)}.")
            limits.check(shape[0], shape[2], shape[3])
        size = math.prod(shape) * dtype.itemsize
        if size > most:
            raise WireError(f"{name} unpacks to more than {most} bytes.")
        data = head.read(size)
        data += member.read(size - len(data))
    return np.frombuffer(data, dtype, count=math.prod(shape)).reshape(shape)


def _measured(text: bytes) -> bytes:
    """Return JSON text that is not made of so many small values that they take a hundred times its room."""
    if sum(text.count(mark) for mark in (b",", b"[", b"{", b":")) > MOST_VALUES:
        raise WireError(f"the request has more than {MOST_VALUES} values; send fewer pictures at once, or shorter metadata.")
    return text
