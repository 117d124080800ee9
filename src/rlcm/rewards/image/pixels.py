"""Images as bytes: the roundings and encodings that rewards share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rlcm.errors import UsageError


def to_uint8(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return images as [B, h, w, 3] bytes, round(255 x) of the values cut to [0, 1].

    Args:
        images: [B, 3, h, w] float RGB, finite, nominally in [0, 1]; any device.

    Raises:
        ValueError: if the shape is not [B, 3, h, w].
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, h, w], not {list(images.shape)}.")
    # float32: in half precision 255 x has steps of 1/8 and rounds differently from the published code.
    levels = (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_uint8(levels: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """Return [B, h, w, 3] bytes as float images [B, 3, h, w] in [0, 1]."""
    return torch.from_numpy(levels.astype(np.float32)).permute(0, 3, 1, 2) / 255


def to_levels(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an opened picture as [h, w, 3] bytes, as a viewer shows it.

    Turned as its EXIF data say; 16 bits scaled to 8; what is transparent before white; of an animation the first picture.

    Raises:
        ValueError: if its numbers have no known range (32 bits a pixel), so that nobody can say what is white.
        OSError: if the file is damaged; other errors of its decoder come through.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":
        wide = np.asarray(picture)
        if picture.mode == "F" or not (0 <= wide.min() <= wide.max() < 2**16):
            raise ValueError("it has 32 bits a pixel, whose range is not known; save it with 8 or 16")
        grey = (wide.astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def read_picture(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the picture of a file as [h, w, 3] bytes; see `to_levels`.

    Raises:
        UsageError: if it is not a picture that can be read.
    """
    try:
        with Image.open(file) as picture:
            return to_levels(picture)
    except Exception as error:  # a damaged file may fail anywhere in its decoder
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{file} is not a picture that can be read ({why}); remove it or convert it to PNG.") from error


def to_png(level: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return one picture [h, w, 3] as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(level).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
