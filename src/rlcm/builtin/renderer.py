"""Draws the world's training pictures: colour emoji on pale grounds, deterministic by seed."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rlcm.builtin.scenes import SIZE, Thing
from rlcm.builtin.vocabulary import CLASSES, COLOURS
from rlcm.errors import MissingFileError

FONT_PIXELS = 109  # the only bitmap size of the font
DEFAULT_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPHS: dict[str, str] = dict(zip(CLASSES, "🐶🐱🦊🐼🐵🐷🐸🐔🐯🦉🐰🐧⭐❤🚗⛵📕🎈🧢🎒", strict=True))
HUES: dict[str, int] = {"red": 0, "yellow": 50, "green": 130, "blue": 215, "purple": 280}
"""Degrees; what is more saturated than COLOURED takes the hue."""
COLOURED = 0.25


class Renderer:
    """Draws things as [64, 64, 3] uint8 RGB arrays.

    Args:
        font: path of Noto Color Emoji (OFL; Debian package fonts-noto-color-emoji).

    Raises:
        MissingFileError: if the font is not there, or lacks a glyph.
    """

    def __init__(self, font: Path | str = DEFAULT_FONT) -> None:
        if not Path(font).is_file():
            raise MissingFileError(
                f"font={str(font)!r} does not exist; the renderer draws with Noto Color Emoji. "
                "Install it (Debian: apt-get install fonts-noto-color-emoji) or name its path with --font."
            )
        face = ImageFont.truetype(str(font), FONT_PIXELS)
        glyphs = [_draw_glyph(face, GLYPHS[name]) for name in CLASSES]

        @lru_cache(maxsize=4096)
        def sprite(kind: int, colour: int | None, side: int) -> Image.Image:
            glyph = glyphs[kind] if colour is None else _tinted(glyphs[kind], HUES[COLOURS[colour]])
            scale = side / max(glyph.size)
            size = max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))
            return glyph.resize(size, Image.Resampling.LANCZOS)

        self._sprite = sprite

    def draw(self, things: Sequence[Thing], seed: int) -> np.ndarray:
        """Return the picture of `things`; its ground comes from `seed`."""
        picture = Image.fromarray(_ground(np.random.default_rng(seed)))
        for thing in things:
            sprite = self._sprite(thing.kind, thing.colour, thing.side)
            picture.paste(sprite, (round(thing.x - sprite.width / 2), round(thing.y - sprite.height / 2)), sprite)
        return np.asarray(picture)


def _draw_glyph(face: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), text, font=face, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise MissingFileError(f"the font has no glyph for {text!r}; use a Noto Color Emoji of version 2.038 or newer.")
    return canvas.crop(box)


def _tinted(glyph: Image.Image, hue: int) -> Image.Image:
    hsv = np.asarray(glyph.convert("RGB").convert("HSV")).copy()
    hsv[..., 0] = np.where(hsv[..., 1] > COLOURED * 255, round(hue / 360 * 255), hsv[..., 0])
    tinted = Image.fromarray(hsv, "HSV").convert("RGB")
    tinted.putalpha(glyph.getchannel("A"))
    return tinted


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Return a pale tint that grows a little darker in one direction."""
    tint = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.02, 0.2), rng.uniform(0.9, 1.0)), np.float32)
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.12)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    along = x * np.cos(angle) + y * np.sin(angle)
    shade = 1 - depth * (along - along.min()) / (along.max() - along.min())
    return np.clip(np.rint(255 * tint * shade[..., None]), 0, 255).astype(np.uint8)
