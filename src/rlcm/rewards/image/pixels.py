"""Images as bytes: the roundings and encodings that rewards share."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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


def to_png(level: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return one picture [h, w, 3] as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(level).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
