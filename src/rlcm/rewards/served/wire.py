"""What travels between the client and the server of rewards: arrays or PNG files in, JSON out, no pickle.

A request is one of
    application/x-npz     a NumPy archive of `images` [B, 3, h, w] (uint8 in 0 .. 255, or float32 in [0, 1]) and `request`, the
                          UTF-8 bytes of the JSON object below without its `images`
    application/json      {"images": [PNG files in base64], "prompts": [B texts], "metadata": [B objects], "rewards": [labels]}
and the answer is {"scores": {label: [B numbers]}}. `metadata` and `rewards` may be left out.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from rlcm.rewards.image.pixels import from_uint8, to_png, to_uint8

NPZ, JSON = "application/x-npz", "application/json"
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
            picture_request = PngRequest.model_validate_json(body)
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
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise WireError(f"{label} has {value!r} for picture {index}, which is no finite number.")
    return {str(label): [float(value) for value in values] for label, values in scores.items()}


def _from_png(texts: Sequence[str], limits: Limits) -> Tensor:
    if len(texts) > limits.images:
        raise WireError(f"{len(texts)} pictures are not in 1 .. {limits.images}.")
    files = [_open_png(index, text) for index, text in enumerate(texts)]
    size = files[0].size
    limits.check(len(files), size[1], size[0])
    levels = []
    for index, file in enumerate(files):
        if file.size != size:
            raise WireError(f"images.{index} has {file.size} pixels and images.0 has {size}; send pictures of one size.")
        try:
            levels.append(np.asarray(file.convert("RGB")))
        except Exception as error:  # a damaged file may fail anywhere in its decoder
            raise WireError(f"images.{index} is a damaged PNG file ({type(error).__name__}).") from error
    return from_uint8(np.stack(levels))


def _open_png(index: int, text: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
    except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise WireError(f"images.{index} is not a PNG file in base64 ({type(error).__name__}).") from error


def _from_npz(body: bytes, limits: Limits) -> tuple[Tensor, ScoreRequest]:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if set(members) != {"images.npy", "request.npy"}:
                raise WireError("the archive must hold the arrays `images` and `request`, and nothing else.")
            pixels = _read_array(archive, "images.npy", (np.uint8, np.float32), 4, limits.bytes)
            request = _read_array(archive, "request.npy", (np.uint8,), 1, limits.bytes)
    except WireError:
        raise
    except Exception as error:  # a damaged archive may fail anywhere in its decoders
        raise WireError(f"the body is not an npz archive ({type(error).__name__}: {error}).") from error
    count, channels, height, width = pixels.shape
    if channels != 3:
        raise WireError(f"images must be [B, 3, h, w], not {list(pixels.shape)}.")
    limits.check(count, height, width)
    images = torch.from_numpy(pixels.copy()).float()
    if pixels.dtype == np.uint8:
        images /= 255
    elif not bool(((images >= 0) & (images <= 1)).all()):
        raise WireError("float images must lie in [0, 1]; NaN is not there.")
    return images, ScoreRequest.model_validate_json(request.tobytes())


def _read_array(
    archive: zipfile.ZipFile, name: str, dtypes: Sequence[Any], ndim: int, most: int
) -> np.ndarray[Any, np.dtype[Any]]:
    """Return one array of an archive, having unpacked at most `most` bytes and a header."""
    with archive.open(name) as member:
        data = member.read(most + 2**16 + 1)
    if len(data) > most + 2**16:
        raise WireError(f"{name} unpacks to more than {most} bytes.")
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read_header(file)
    if dtype not in [np.dtype(d) for d in dtypes] or len(shape) != ndim or fortran:
        raise WireError(f"{name} has type {dtype} and shape {shape}; see the description of the request.")
    return np.frombuffer(data, dtype, count=math.prod(shape), offset=file.tell()).reshape(shape)
