"""Pictures of every kind are read as a viewer shows them."""

import io

import numpy as np
import pytest
from PIL import Image

from rlcm.errors import UsageError
from rlcm.rewards.image.pixels import read_picture

RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)


def read(tmp_path, picture, name="a.png", **options):
    picture.save(tmp_path / name, **options)
    return read_picture(tmp_path / name).astype(int)


def test_eight_bits_stay_as_they_are(tmp_path):
    assert (read(tmp_path, Image.fromarray(COLOURS)) == COLOURS).all()
    assert (read(tmp_path, Image.fromarray(RAMP)) == RAMP[..., None]).all()
    assert (read(tmp_path, Image.fromarray(RAMP).convert("1")) % 255 == 0).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled(tmp_path, name):
    wide = RAMP.astype(np.uint16) * 257
    assert (read(tmp_path, Image.fromarray(wide), name) == RAMP[..., None]).all()


def test_what_is_transparent_lies_before_white(tmp_path):
    alpha = np.zeros_like(RAMP)
    alpha[:, :3] = 255
    expected = np.where(alpha[..., None] == 255, COLOURS, 255)
    assert (read(tmp_path, Image.fromarray(np.dstack([COLOURS, alpha]))) == expected).all()
    grey = read(tmp_path, Image.merge("LA", (Image.fromarray(RAMP), Image.fromarray(alpha))))
    assert (grey[:, 3:] == 255).all()
    palette = Image.fromarray(RAMP).convert("P")
    found = read(tmp_path, palette, transparency=int(np.asarray(palette)[0, 1]))
    assert (found[0, 1] == 255).all()
    assert (found[1] == RAMP[1][:, None]).all()


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_exif_turns_the_picture(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (read(tmp_path, Image.fromarray(COLOURS), exif=exif) == np.rot90(COLOURS, turn)).all()


def test_print_colours_and_animations(tmp_path):
    red = Image.new("RGB", (8, 8), "red")
    found = read(tmp_path, red.convert("CMYK"), "a.jpg")
    assert abs(found - [255, 0, 0]).max() < 12
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("lime", "black")]
    assert (read(tmp_path, frames[0], "a.webp", save_all=True, append_images=frames[1:], lossless=True) == [0, 255, 0]).all()


def test_what_nobody_can_tell_is_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "a.tif")
    data = io.BytesIO()
    Image.fromarray(COLOURS).save(data, "png")
    (tmp_path / "half.png").write_bytes(data.getvalue()[:60])
    (tmp_path / "empty.png").write_bytes(b"")
    for name, why in (("a.tif", "32 bits a pixel"), ("half.png", "half"), ("empty.png", "identify")):
        with pytest.raises(UsageError, match=rf"{name} is not a picture that can be read.*") as refused:
            read_picture(tmp_path / name)
        assert why in str(refused.value)
