"""The sheet of `rlcm sample`: every picture whole, large enough, beside its prompt."""

import pytest
from PIL import Image

from rlcm.report.sheet import GAP, LEAST, LINE, MARGIN, contact_sheet

COLOURS = ["red", "green", "blue", "orange", "purple", "black"]


def pictures(count, size=(64, 64)):
    return [Image.new("RGB", size, COLOURS[i % len(COLOURS)]) for i in range(count)]


def at(sheet, column, row, top, side=192):
    return sheet.getpixel((MARGIN + column * (side + GAP) + side // 2, top + row * (side + GAP + LINE) + side // 2))


def test_several_of_each_prompt_stand_under_it():
    own = pictures(6)
    sheet = contact_sheet(own, ["a", "b"], 3)
    assert sheet.size == (2 * MARGIN + 3 * 192 + 2 * GAP, 2 * MARGIN + 2 * (192 + LINE) + GAP)
    for i, picture in enumerate(own):
        assert at(sheet, i % 3, i // 3, MARGIN + LINE) == picture.getpixel((0, 0))


def test_one_of_each_prompt_has_it_below():
    own = pictures(5)
    sheet = contact_sheet(own, ["a", "b", "c", "d", "e"], 1, columns=3)
    assert sheet.size == (2 * MARGIN + 3 * 192 + 2 * GAP, 2 * MARGIN + 2 * (192 + LINE) + GAP)
    for i, picture in enumerate(own):
        assert at(sheet, i % 3, i // 3, MARGIN) == picture.getpixel((0, 0))


@pytest.mark.parametrize(("size", "scaled"), [((64, 64), 192), ((16, 8), 192), ((512, 256), 512), ((100, 40), 200)])
def test_small_pictures_are_enlarged_and_large_ones_left(size, scaled):
    sheet = contact_sheet(pictures(1, size), ["a"], 1)
    assert scaled >= LEAST
    assert sheet.width == 2 * MARGIN + scaled
    assert sheet.height == 2 * MARGIN + LINE + scaled * size[1] // size[0]


def test_rows_of_many_pictures_are_broken():
    sheet = contact_sheet(pictures(10), ["a"], 10)
    assert sheet.width == 2 * MARGIN + 8 * 192 + 7 * GAP
    assert sheet.height == 2 * MARGIN + 2 * 192 + GAP + LINE


def test_long_prompts_are_cut():
    assert contact_sheet(pictures(1), ["a very long prompt " * 40], 1).width == 2 * MARGIN + 192
