"""Pictures inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

ENCODINGS = ((128, None), (384, 90), (320, 85), (224, 80), (128, 70), (64, 60))  # longest side, quality of JPEG; None is PNG
SHEET_ENCODINGS = ((512, None), (768, 88), (512, 80), (384, 70))


def data_uris(pictures: Sequence[Image.Image], budget: int, *, sheets: bool = False) -> list[str]:
    """Return pictures as data URIs: small ones as they are, large ones as small as they must be to make no large page.

    Args:
        budget: bytes of all of them.
        sheets: grids of pictures, which may be larger.
    """
    ladder = SHEET_ENCODINGS if sheets else ENCODINGS
    small = all(max(picture.size) <= ladder[0][0] for picture in pictures)
    encoded: list[str] = []
    for side, quality in ladder if small else ladder[1:]:
        encoded = [_encode(picture, side, quality) for picture in pictures]
        if sum(map(len, encoded)) <= budget:
            break
    return encoded


def _encode(picture: Image.Image, side: int, quality: int | None) -> str:
    """Return a picture of at most `side` pixels a side as a data URI: JPEG of a quality, or PNG for None."""
    picture, buffer = picture.copy(), io.BytesIO()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
    if quality is None:
        kind = "png"
        picture.save(buffer, format="PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.save(buffer, format="JPEG", quality=quality)
    return data_uri(kind, buffer.getvalue())


def data_uri(kind: str, file: bytes) -> str:
    """Return the file of a picture, png or jpeg, as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"
