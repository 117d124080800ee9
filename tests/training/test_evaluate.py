"""Evaluations: the same prompts and seeds every time, means with their intervals, and the guard's figures."""

import pytest
import torch
from tiny_runs import PROMPTS, brightness, largest_difference, stir, tiny_policy

from rlcm.policy.rollout import decode_images, sample_latents
from rlcm.rewards import RewardMix, RewardPart
from rlcm.training.evaluate import Evaluation, EvaluationSettings, Evaluator, guard, mean_interval


def evaluator(policy, images=5, batch_size=2, judge=None, **settings):
    rewards = RewardMix([RewardPart("bright", brightness, 2.0), RewardPart("red", lambda i, p: i[:, 0].mean((1, 2)), -1.0)])
    return Evaluator(
        EvaluationSettings(images=images, **settings),
        PROMPTS,
        [{}] * 3,
        policy.denoiser.encode(PROMPTS),
        rewards,
        policy.table,
        judge,
        batch_size,
    )


def test_the_set_is_fixed_and_scored():
    policy = tiny_policy()
    found = evaluator(policy)(policy)
    again = evaluator(policy, batch_size=5)(policy)
    assert found.images.shape == (5, 3, 16, 16)
    assert found.prompts == [*PROMPTS, *PROMPTS[:2]]
    assert len(set(found.seeds)) == 5
    assert largest_difference(found.images, again.images) < 1e-6
    latents = sample_latents(policy.denoiser, policy.table, policy.denoiser.encode(found.prompts), found.seeds)
    assert largest_difference(found.images, decode_images(policy.denoiser, latents)) < 1e-6
    expected = 2 * brightness(found.images, []) - found.images[:, 0].mean((1, 2))
    torch.testing.assert_close(found.rewards["total"], expected)
    assert set(found.rewards) == {"total", "bright", "red"}
    assert evaluator(policy, seed=1).seeds != found.seeds


def test_the_averaged_weights_are_looked_at():
    policy = tiny_policy(ema_decay=0.9)
    look = evaluator(policy)
    before = look(policy).images
    stir(policy)
    assert largest_difference(look(policy).images, before) < 1e-6
    policy.follow()
    assert largest_difference(look(policy).images, before) > 1e-4


def test_the_summary_is_plain_numbers():
    policy = tiny_policy()

    def judge(images, prompts, metadata):
        assert prompts == [*PROMPTS, *PROMPTS[:2]]
        assert metadata == [{}] * 5
        few = torch.tensor([1.0, torch.nan, 0.0, torch.nan, 1.0])  # where nothing is asked, nothing is answered
        return {"bright": (images.mean((1, 2, 3)) > 0).float(), "few": few}

    found = evaluator(policy, judge=judge)(policy)
    summary = found.summary()
    assert summary["images"] == 5
    assert summary["reward"]["mean"] == pytest.approx(found.rewards["total"].mean().item())
    assert set(summary["rewards"]) == {"bright", "red"}
    assert summary["judge"]["bright"]["mean"] == 1.0
    assert summary["judge"]["few"] == mean_interval(torch.tensor([1.0, 0.0, 1.0]))
    assert set(summary["guard"]) == {"diversity", "saturated", "near_black", "near_white", "high_frequency"}
    assert summary["held_out"] == {}
    assert summary["images_per_second"] > 0


def test_without_a_judge_and_without_a_prompt_twice():
    images = torch.rand(2, 3, 8, 8)
    summary = Evaluation(images, ["a", "b"], [0, 1], {"total": torch.ones(2)}, None, 1.0).summary()
    assert summary["judge"] is None
    assert "diversity" not in summary["guard"]


def test_mean_interval():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, float("nan")])
    found = mean_interval(values)
    assert found["mean"] == 2.5
    assert found["ci95"] == pytest.approx(1.96 * (5 / 3) ** 0.5 / 2)
    assert mean_interval(torch.tensor([3.0])) == {"mean": 3.0, "ci95": 0.0}


def test_guard_figures():
    flat = torch.cat([torch.zeros(2, 3, 32, 32), torch.ones(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5)])
    found = guard(flat, ["a", "a", "b", "b"])
    assert found["saturated"] == pytest.approx(0.75)
    assert (found["near_black"], found["near_white"]) == (0.5, 0.25)
    assert found["high_frequency"] == pytest.approx(0, abs=1e-10)
    assert found["diversity"] == pytest.approx((0 + 0.5) / 2)
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert guard(noise, ["a"] * 4)["high_frequency"] == pytest.approx(8 / 9 / 12, rel=0.05)
