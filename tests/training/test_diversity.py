"""How far apart pictures of one prompt are: identities and closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlcm.training.diversity import diversity_of, mean_distance, pixel_distance, vendi_score


def test_pictures_that_are_all_alike():
    alike = F.normalize(torch.rand(1, 5, generator=torch.Generator().manual_seed(0)), dim=1).expand(4, 5)
    assert mean_distance(alike, ["a"] * 4) == pytest.approx(0, abs=1e-6)
    assert vendi_score(alike, ["a"] * 4) == pytest.approx(1, abs=1e-5)
    assert pixel_distance(torch.rand(1, 3, 20, 24).expand(4, 3, 20, 24), ["a"] * 4) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_orthogonal_pictures_count_as_many_as_there_are(n):
    features = torch.eye(9)[:n]
    assert mean_distance(features, ["a"] * n) == pytest.approx(1)
    assert vendi_score(features, ["a"] * n) == pytest.approx(n)


@pytest.mark.parametrize("cosine", [-0.3, 0.0, 0.6, 0.99])
def test_two_pictures_at_an_angle(cosine):
    """K / 2 has the eigenvalues (1 + c) / 2 and (1 - c) / 2."""
    features = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])
    shares = [(1 + cosine) / 2, (1 - cosine) / 2]
    assert mean_distance(features, ["a", "a"]) == pytest.approx(1 - cosine, abs=1e-6)
    assert vendi_score(features, ["a", "a"]) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


def test_prompts_count_alike_and_single_pictures_do_not():
    """Of a, two alike: 0 and 1. Of b, three that are orthogonal: 1 and 3. Of c, one."""
    features = torch.eye(9)[[0, 1, 0, 2, 3, 4]]
    prompts = ["a", "b", "a", "b", "b", "c"]
    assert mean_distance(features, prompts) == pytest.approx((0 + 1) / 2)
    assert vendi_score(features, prompts) == pytest.approx((1 + 3) / 2)
    turned = features @ torch.linalg.qr(torch.rand(9, 9, generator=torch.Generator().manual_seed(1)))[0]
    assert vendi_score(turned, prompts) == pytest.approx(2, rel=1e-5)  # only angles count


def test_pixels():
    flat = torch.tensor([0.0, 0.0, 1.0, 0.5]).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    assert pixel_distance(flat, ["a", "a", "b", "b"]) == pytest.approx((0 + 0.5) / 2)


def test_no_prompt_twice():
    for measure in (mean_distance, vendi_score):
        with pytest.raises(ValueError, match="no prompt comes twice"):
            measure(torch.eye(3), ["a", "b", "c"])


def test_names_of_what_was_measured():
    images, prompts = torch.rand(4, 3, 8, 8), ["a", "a", "b", "b"]
    seen = {"judge": lambda images: F.normalize(images.flatten(1), dim=1), "clip": lambda images: torch.eye(4)[:, :4]}
    found = diversity_of(images, prompts, seen)
    assert list(found) == ["diversity_judge", "vendi_judge", "diversity_clip", "vendi_clip"]
    assert (found["diversity_clip"], found["vendi_clip"]) == pytest.approx((1, 2))
    assert diversity_of(images, prompts, {}) == {"diversity": pixel_distance(images, prompts)}
    assert diversity_of(images, ["a", "b", "c", "d"], seen) == {}
