"""Pictures of prompts on one sheet, large enough to see and with their prompts."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from rlcm.report.drawing import INK
from rlcm.report.lettering import cut, font

LEAST = 192
"""Pixels of the longer side under which pictures are enlarged."""
MARGIN, GAP, LINE = 16, 8, 26


def contact_sheet(pictures: Sequence[Image.Image], prompts: Sequence[str], count: int, columns: int = 8) -> Image.Image:
    """Return one picture of several: those of each prompt in rows of their own under it; with one of each, under each its prompt.

    Args:
        pictures: `count` of the first prompt, then of the second, and so on, of one size.
        prompts: one or more.
        columns: pictures in a row at most.
    """
    width, height = pictures[0].size
    scale = max(1, -(-LEAST // max(width, height)))
    size = (width * scale, height * scale)
    columns = min(columns, count if count > 1 else len(prompts))
    letters = font(15)
    rows: list[tuple[str, Sequence[Image.Image], Sequence[str]]] = []
    if count > 1:
        for number, prompt in enumerate(prompts):
            own = pictures[number * count : (number + 1) * count]
            rows += [(prompt if first == 0 else "", own[first : first + columns], ()) for first in range(0, count, columns)]
    else:
        steps = range(0, len(pictures), columns)
        rows = [("", pictures[first : first + columns], prompts[first : first + columns]) for first in steps]
    heights = [size[1] + GAP + (LINE if title or below else 0) for title, _, below in rows]
    total = (2 * MARGIN + columns * size[0] + (columns - 1) * GAP, 2 * MARGIN + sum(heights) - GAP)
    sheet = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for (title, own, below), taken in zip(rows, heights, strict=True):
        top = y
        if title:
            draw.text((MARGIN, y), cut(title, letters, total[0] - 2 * MARGIN), font=letters, fill=INK)
            top += LINE
        for column, picture in enumerate(own):
            x = MARGIN + column * (size[0] + GAP)
            sheet.paste(picture.resize(size, Image.Resampling.LANCZOS) if scale > 1 else picture, (x, top))
            if below:
                middle = (x + size[0] / 2, top + size[1] + 6)
                draw.text(middle, cut(below[column], letters, size[0]), font=letters, fill=INK, anchor="ma")
        y += taken
    return sheet
