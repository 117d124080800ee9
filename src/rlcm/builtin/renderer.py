"""Draws the built-in model's training pictures: colour-emoji animals on named backgrounds, deterministic by seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rlcm.builtin.vocabulary import ANIMALS, COLOURS, PATTERNS, Scene, is_held_out
from rlcm.errors import MissingFileError

SIZE = 64
FONT_PIXELS = 109  # the only bitmap size of the font
DEFAULT_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

# fmt: off
GLYPHS: dict[str, str] = {
    "cat": "🐈", "dog": "🐕", "horse": "🐎", "monkey": "🐒", "rabbit": "🐇", "zebra": "🦓",
    "spider": "🕷", "bird": "🐦", "sheep": "🐑", "deer": "🦌", "cow": "🐄", "goat": "🐐",
    "lion": "🦁", "tiger": "🐅", "bear": "🐻", "raccoon": "🦝", "fox": "🦊", "wolf": "🐺",
    "lizard": "🦎", "beetle": "🪲", "ant": "🐜", "butterfly": "🦋", "fish": "🐟", "shark": "🦈",
    "whale": "🐳", "dolphin": "🐬", "squirrel": "🐿", "mouse": "🐭", "rat": "🐀", "snake": "🐍",
    "turtle": "🐢", "frog": "🐸", "chicken": "🐔", "duck": "🦆", "goose": "🪿", "bee": "🐝",
    "pig": "🐖", "turkey": "🦃", "fly": "🪰", "llama": "🦙", "camel": "🐫", "bat": "🦇",
    "gorilla": "🦍", "hedgehog": "🦔", "kangaroo": "🦘",
}
# fmt: on


class Renderer:
    """Draws scenes as [64, 64, 3] uint8 RGB arrays.

    Args:
        font: path of Noto Color Emoji (OFL; Debian package fonts-noto-color-emoji).

    Raises:
        MissingFileError: if the font is not there.
    """

    def __init__(self, font: Path | str = DEFAULT_FONT) -> None:
        if not Path(font).is_file():
            raise MissingFileError(
                f"font={str(font)!r} does not exist; the renderer draws with Noto Color Emoji. "
                "Install it (Debian: apt-get install fonts-noto-color-emoji) or name its path with --font."
            )
        face = ImageFont.truetype(str(font), FONT_PIXELS)
        self._glyphs = [_draw_glyph(face, GLYPHS[name]) for name in ANIMALS]

    def draw(self, scene: Scene, seed: int) -> np.ndarray:
        """Return the picture of `scene`; position, scale, tilt, flip and background details come from `seed`."""
        rng = np.random.default_rng([seed, scene.animal, scene.colour, scene.pattern])
        picture = Image.fromarray(_background(scene, rng))
        glyph = self._glyphs[scene.animal]
        if rng.random() < 0.5:
            glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        glyph = glyph.rotate(rng.normal(0.0, 2.5), resample=Image.Resampling.BICUBIC)
        scale = rng.uniform(0.84, 0.94) * SIZE / max(glyph.size)
        width, height = (max(1, round(side * scale)) for side in glyph.size)
        glyph = glyph.resize((width, height), Image.Resampling.LANCZOS)
        left = round((SIZE - width) / 2 + rng.uniform(-2, 2))
        top = round((SIZE - height) / 2 + rng.uniform(-2, 2))
        picture.paste(glyph, (left, top), glyph)
        return np.asarray(picture)


def random_scenes(count: int, seed: int, held_out: bool = False) -> list[Scene]:
    """Return `count` random scenes, all from the trained combinations or all from the held-out ones."""
    rng = np.random.default_rng([seed, count, held_out])
    pairs = [(a, c) for a in range(len(ANIMALS)) for c in range(len(COLOURS)) if is_held_out(a, c) == held_out]
    # Shuffled whole passes: every combination comes equally often.
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])[:count]
    return [Scene(pairs[i][0], pairs[i][1], int(rng.integers(len(PATTERNS)))) for i in order]


def _draw_glyph(face: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), text, font=face, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise MissingFileError(f"the font has no glyph for {text!r}; use a Noto Color Emoji of version 2.038 or newer.")
    glyph = canvas.crop(box)
    # Room on all sides, so that a tilt cuts nothing off.
    padded = Image.new("RGBA", (max(glyph.size) + 8, max(glyph.size) + 8), (0, 0, 0, 0))
    padded.paste(glyph, ((padded.width - glyph.width) // 2, (padded.height - glyph.height) // 2))
    return padded


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    base = np.array(list(COLOURS.values())[scene.colour], dtype=np.float32)
    base = base + rng.normal(0.0, 4.0, 3).astype(np.float32)
    # The second shade: dark colours get lighter, light ones darker, so that the colour keeps its name.
    shade = base * 0.78 if base.mean() > 90 else base + 0.22 * (255 - base)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    pattern = PATTERNS[scene.pattern]
    if pattern == "plain":
        blend = np.zeros((SIZE, SIZE), np.float32)
    elif pattern == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        blend = (x * np.cos(angle) + y * np.sin(angle)) / SIZE
        blend = (blend - blend.min()) / (blend.max() - blend.min())
    elif pattern == "striped":
        along = (x, y, (x + y) / 2, (x - y) / 2)[rng.integers(4)]
        blend = ((along + rng.integers(16)) // 8 % 2).astype(np.float32)
    elif pattern == "checked":
        shift_x, shift_y = rng.integers(16, size=2)
        blend = (((x + shift_x) // 8 + (y + shift_y) // 8) % 2).astype(np.float32)
    else:
        blend = np.kron(rng.random((SIZE // 4, SIZE // 4), dtype=np.float32), np.ones((4, 4), np.float32))
    mixed = base + blend[..., None] * (shade - base)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
