"""What CLIP is shown, against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from reward_models import SIDE

from rlcm.rewards.learned.clip import resize_crop, resize_pad


def pillow(picture, size):
    array = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC), dtype=np.float64) / 255


@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 70), (80, 41), (20, 24), (32, 32)])
def test_resizing_is_pillows(height, width):
    # Above an aspect of 2 some versions of Pillow take the columns first, and cut differently.
    levels = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0))
    images = levels / 255
    short, long = min(height, width), max(height, width)
    cropped, padded = resize_crop(images, SIDE), resize_pad(images, SIDE)
    for picture, crop, pad in zip(images, cropped, padded, strict=True):
        rows, columns = int(SIDE * height / short), int(SIDE * width / short)
        whole = pillow(picture, (columns, rows))
        top, left = (rows - SIDE) // 2, (columns - SIDE) // 2
        difference = np.abs(crop.permute(1, 2, 0).numpy() - whole[top : top + SIDE, left : left + SIDE])
        # Pillow rounds to 256 levels after each of its two passes.
        assert difference.max() <= 1.5 / 255
        rows, columns = round(SIDE * height / long), round(SIDE * width / long)
        black = np.zeros((SIDE, SIDE, 3))
        top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
        black[top : top + rows, left : left + columns] = pillow(picture, (columns, rows))
        assert np.abs(pad.permute(1, 2, 0).numpy() - black).max() <= 1.5 / 255
