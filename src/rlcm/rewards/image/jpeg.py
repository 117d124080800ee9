"""How many bytes a picture takes as a JPEG file: the two rewards that need no model."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rlcm.rewards.image.pixels import to_uint8

SUBSAMPLINGS = ("4:2:0", "4:4:4")


def jpeg_kilobytes(picture: np.ndarray[Any, np.dtype[np.uint8]], *, quality: int = 95, subsampling: str = "4:2:0") -> float:
    """Return the size of one picture [h, w, 3] as a JPEG file, in kB of 1000 bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    return buffer.tell() / 1000


class Incompressibility:
    """The size of the picture as a JPEG file, in kB: busy pictures score high.

        r(x) = bytes(JPEG(round(255 x))) / 1000

    Black et al. 2023, section 5.1 (arXiv:2305.13301); the size of the published experiments is that of quality 95
    and chroma subsampling 4:2:0. Not differentiable.

    Args:
        quality: JPEG quality, 1 to 95 (above 95 files grow without a visible gain).
        subsampling: of the colour channels; "4:2:0" halves both sides, "4:4:4" keeps them.
        threads: encoders that run side by side (the encoder releases Python's lock); 0 = one a core, at most 8.

    Raises:
        ValueError: if an argument is out of range.
    """

    display: Mapping[str, str] = {"label": "JPEG size", "unit": "kB", "better": "higher"}
    """How reports show the reward to people."""

    def __init__(self, *, quality: int = 95, subsampling: str = "4:2:0", threads: int = 0) -> None:
        if not 1 <= quality <= 95:
            raise ValueError(f"quality={quality} is not in 1 .. 95.")
        if subsampling not in SUBSAMPLINGS:
            raise ValueError(f"subsampling={subsampling!r} is not one of {', '.join(SUBSAMPLINGS)}.")
        if threads < 0:
            raise ValueError(f"threads={threads} is negative; use 0 for one a core.")
        self.quality = quality
        self.subsampling = subsampling
        self._pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1), thread_name_prefix="jpeg")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the sizes [B] in kB of images [B, 3, h, w]; the prompts are not looked at."""

        def size(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
            return jpeg_kilobytes(picture, quality=self.quality, subsampling=self.subsampling)

        return torch.tensor(list(self._pool.map(size, to_uint8(images))), dtype=torch.float32)


class Compressibility(Incompressibility):
    """Minus the size of the picture as a JPEG file, in kB: plain pictures score high. See `Incompressibility`."""

    display: Mapping[str, str] = {"label": "JPEG size", "unit": "kB", "better": "lower"}
    """How reports show the reward to people."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return minus the sizes [B] in kB of images [B, 3, h, w]; the prompts are not looked at."""
        return -super().__call__(images, prompts)
