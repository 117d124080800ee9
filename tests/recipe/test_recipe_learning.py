"""What the world's generators and detectors learn from: trajectories' timesteps, captions, and pictures that the model spoils."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlcm.builtin.scenes import arrange, draw_asked
from rlcm.builtin.vocabulary import TAGS, every, prompt
from rlcm.recipe.hard import SPOILT, Spoiler
from rlcm.recipe.latents import captions, seeded
from rlcm.recipe.measure import prompts_of_test
from rlcm.recipe.student import FROM_NOISE, NODES, _timesteps
from rlcm.recipe.teacher import student_scheduler, teacher_scheduler


def test_timesteps_of_trajectories_fall_from_pure_noise_or_from_below():
    timesteps = _timesteps(400, torch.Generator().manual_seed(0))
    assert timesteps.shape == (400, NODES)
    assert bool((timesteps.diff(dim=1) < 0).all())
    assert int(timesteps.min()) >= 1
    pure = timesteps[:, 0] == 999
    assert float(pure.float().mean()) == pytest.approx(FROM_NOISE, abs=0.08)
    assert int(timesteps[:, 0].min()) >= 150
    # Every row has places of its own, so that the student learns all timesteps, not those of one grid.
    assert len(timesteps[pure, 5].unique()) > 40


def test_both_schedulers_have_the_same_noise():
    teacher, student = teacher_scheduler(), student_scheduler()
    assert torch.equal(teacher.alphas_cumprod, student.alphas_cumprod)
    assert teacher.config.prediction_type == student.config.prediction_type == "v_prediction"


def test_captions_are_drawn_by_seed_and_say_no_more_than_was_asked():
    asked = [draw_asked(np.random.default_rng(seed), False) for seed in range(200)]
    said = captions(asked, np.random.default_rng(1))
    assert said == captions(asked, np.random.default_rng(1))
    for text, a in zip(said, asked, strict=True):
        words = set(text.removeprefix("a picture of ").split()) - {"a", "an", "and"}
        assert words <= set(prompt(a).split()) | set(prompt(a, 1).split())
    first, second = (seeded(torch.Generator().manual_seed(3)).random() for _ in range(2))
    assert first == second


def test_prompts_of_the_test_are_of_all_kinds_alike():
    seen = prompts_of_test(60, held_out=False)
    assert [entry["tag"] for entry in seen[:6]] == list(TAGS)
    held_out = {prompt(asked) for tag in TAGS for asked in every(tag, True)}
    assert not {entry["prompt"] for entry in seen} & held_out
    assert {entry["prompt"] for entry in prompts_of_test(60, held_out=True)} <= held_out


class _Pooling:
    """An autoencoder that makes a picture small and large again."""

    def encode(self, images):
        small = F.avg_pool2d(images, 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: small))

    def decode(self, latents):
        return SimpleNamespace(sample=F.interpolate(latents, scale_factor=8.0))


def test_what_the_model_spoils_is_whole_or_nothing():
    rng = np.random.default_rng(0)
    things = [arrange(draw_asked(rng, None), rng, None) for _ in range(80)]
    images = torch.rand(80, 3, 64, 64)
    spoiler = Spoiler(
        _Pooling(),
        lambda x, t, hidden: SimpleNamespace(sample=torch.zeros_like(x)),
        SimpleNamespace(embed=lambda texts: torch.zeros(len(texts), 2, 4)),
    )
    changed, left = spoiler(images, things, torch.Generator().manual_seed(1))
    again, _ = spoiler(images, things, torch.Generator().manual_seed(1))
    assert torch.equal(changed, again)
    same = [torch.equal(a, b) for a, b in zip(changed, images, strict=True)]
    assert sum(same) == 80 - int(80 * SPOILT)
    assert all(after in (before, ()) for after, before in zip(left, things, strict=True))
    assert all(after == before for untouched, after, before in zip(same, left, things, strict=True) if untouched)
    emptied = sum(not after for after in left)
    assert 2 <= emptied <= 25
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
