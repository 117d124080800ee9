"""JPEG sizes against Pillow called directly, and their invariances."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rlcm.rewards.image.jpeg import Compressibility, Incompressibility


def published_size(image: torch.Tensor) -> float:
    """As in the published experiments: Pillow's own defaults but for the quality."""
    buffer = io.BytesIO()
    array = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(array).save(buffer, format="JPEG", quality=95)
    return len(buffer.getvalue()) / 1000


def test_size_is_that_of_the_file_in_thousands_of_bytes(images, prompts):
    sizes = Incompressibility()(images, prompts)
    assert sizes.shape == (5,)
    assert sizes.dtype == torch.float32
    torch.testing.assert_close(sizes, torch.tensor([published_size(image) for image in images]))


def test_compressibility_is_minus_incompressibility(images, prompts):
    assert torch.equal(Compressibility(quality=60)(images, prompts), -Incompressibility(quality=60)(images, prompts))


@pytest.mark.parametrize(("subsampling", "code"), [("4:2:0", 2), ("4:4:4", 0)])
@pytest.mark.parametrize("quality", [30, 95])
def test_quality_and_subsampling_reach_the_encoder(images, prompts, subsampling, code, quality):
    sizes = Incompressibility(quality=quality, subsampling=subsampling)(images, prompts)
    for image, size in zip(images, sizes, strict=True):
        buffer = io.BytesIO()
        array = np.round(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(array).save(buffer, "JPEG", quality=quality, subsampling=code)
        assert size.item() == pytest.approx(buffer.tell() / 1000)


def test_batch_size_and_threads_change_nothing(images, prompts):
    whole = Incompressibility(threads=1)(images, prompts)
    parted = torch.cat([Incompressibility(threads=3)(images[i : i + 2], prompts[i : i + 2]) for i in (0, 2, 4)])
    assert torch.equal(whole, parted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_of_8_bit_pictures_agree(dtype, prompts):
    # Levels / 255 survive the rounding of every dtype that resolves 1/255 of 1; bfloat16 (8 bits) does for small levels.
    levels = torch.randint(0, 128, (5, 3, 8, 9), generator=torch.Generator().manual_seed(1))
    reference = Incompressibility()(levels / 255, prompts)
    assert torch.equal(Incompressibility()((levels / 255).to(dtype), prompts), reference)


def test_a_flat_picture_is_smaller_than_noise(images):
    flat = torch.full_like(images[:1], 0.5)
    sizes = Incompressibility()(torch.cat([flat, images[:1]]), ["", ""])
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"quality": 0}, "quality=0"), ({"subsampling": "4:1:1"}, "4:2:0, 4:4:4"), ({"threads": -1}, "threads=-1")],
)
def test_arguments_out_of_range(arguments, text):
    with pytest.raises(ValueError, match=text):
        Incompressibility(**arguments)


def test_images_of_another_layout_are_refused(prompts):
    with pytest.raises(ValueError, match=r"\[B, 3, h, w\]"):
        Incompressibility()(torch.rand(5, 8, 8, 3), prompts)
