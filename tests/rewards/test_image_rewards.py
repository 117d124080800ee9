"""Rewards of pixels against values worked by hand or computed in NumPy, and their gradients."""

import numpy as np
import pytest
import torch

from rlcm.rewards.image import Brightness, Colourfulness, Sharpness

REWARDS = [Colourfulness(), Sharpness(), Brightness(target=0.3)]


def picture(*colour, size=(4, 6)):
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, *size).clone()


def test_colourfulness_of_flat_colours():
    # A flat picture has no variance: M = 0.3 * 255 * sqrt(rg^2 + yb^2). Red: rg = 1, yb = 1/2. Blue: rg = 0, yb = -1.
    flat = torch.cat([picture(1.0, 0.0, 0.0), picture(0.0, 0.0, 1.0), picture(0.4, 0.4, 0.4)])
    expected = torch.tensor([0.3 * 255 * 1.25**0.5, 0.3 * 255, 0.0])
    torch.testing.assert_close(Colourfulness()(flat, [""] * 3), expected, atol=1e-4, rtol=1e-5)


def test_colourfulness_is_the_published_formula(images, prompts):
    pixels = 255 * images.double().numpy()
    red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    rg, yb = red - green, 0.5 * (red + green) - blue
    axes = (1, 2)
    spread = np.sqrt(rg.std(axes) ** 2 + yb.std(axes) ** 2)
    expected = spread + 0.3 * np.sqrt(rg.mean(axes) ** 2 + yb.mean(axes) ** 2)
    np.testing.assert_allclose(Colourfulness()(images, prompts).numpy(), expected, rtol=1e-5)


def test_sharpness_of_one_bright_pixel():
    # A pixel of luma 255 inside a black 5 x 5 picture: Laplacian -4 there, 1 at four neighbours. Mean 0, so
    # variance = 255^2 (16 + 4) / 25.
    image = torch.zeros(1, 3, 5, 5)
    image[..., 2, 2] = 1
    torch.testing.assert_close(Sharpness()(image, [""]), torch.tensor([255.0**2 * 20 / 25]))


def test_sharpness_mirrors_at_borders_as_opencv_does(images, prompts):
    grey = 255 * np.tensordot(np.array([0.299, 0.587, 0.114]), images.double().numpy(), axes=(0, 1))
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    laplacian = (
        padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:] - 4 * padded[:, 1:-1, 1:-1]
    )
    np.testing.assert_allclose(Sharpness()(images, prompts).numpy(), laplacian.var((1, 2)), rtol=1e-5)


def test_brightness_is_the_distance_from_the_target():
    flat = torch.cat([picture(0.0, 0.0, 0.0), picture(0.25, 0.25, 0.25), picture(0.0, 1.0, 0.0)])
    torch.testing.assert_close(Brightness(target=0.25)(flat, [""] * 3), torch.tensor([-0.25, 0.0, -(0.587 - 0.25)]))


@pytest.mark.parametrize("target", [-0.1, 1.1])
def test_brightness_target_out_of_range(target):
    with pytest.raises(ValueError, match=r"not in 0 \.\. 1"):
        Brightness(target=target)


@pytest.mark.parametrize("reward", REWARDS, ids=lambda r: type(r).__name__)
def test_gradient(reward):
    # Central differences in float32: values of order 100, step 1e-3, so errors of order 100 * 6e-8 / 1e-3 = 6e-3 per entry;
    # a directional derivative along the gradient itself stands well above that.
    x = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(3)).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(x, ["", ""]).sum(), x)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (reward(x + s * 1e-2 * direction, ["", ""]).double().sum() for s in (1, -1))
    assert ((ahead - behind) / 2e-2).item() == pytest.approx(gradient.norm().item(), rel=5e-3)


@pytest.mark.parametrize("reward", REWARDS, ids=lambda r: type(r).__name__)
def test_gradient_of_a_grey_picture_is_finite(reward):
    x = picture(0.3, 0.3, 0.3).requires_grad_()
    reward(x, [""]).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("reward", REWARDS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_batch_sizes(reward, dtype, images, prompts):
    images = images.to(dtype)
    whole = reward(images, prompts)
    assert whole.dtype == torch.float32
    one_by_one = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, one_by_one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole, reward(images.float(), prompts))
