"""Letters in pictures: DejaVu Sans, wrapped and cut to a width."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from PIL import ImageFont


def wrapped(text: str, letters: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Return a text in at most two lines of `width` pixels."""
    first, *rest = text.split() or [""]
    while rest and letters.getlength(f"{first} {rest[0]}") <= width:
        first = f"{first} {rest.pop(0)}"
    return [cut(line, letters, width) for line in (first, " ".join(rest)) if line]


def cut(text: str, letters: ImageFont.FreeTypeFont, width: float) -> str:
    """Return a text, shortened with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
