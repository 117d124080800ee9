"""Evaluations: the same prompts and seeds every time, means with their intervals, and the guard's figures."""

import json

import pytest
import torch
from tiny_runs import PROMPTS, brightness, largest_difference, stir, tiny_policy

from rlcm.policy import gaussian
from rlcm.policy.rollout import decode_images, rollout, sample_latents
from rlcm.rewards import RewardMix, RewardPart
from rlcm.training.diversity import mean_distance
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


def test_diversity_of_pictures_of_one_prompt():
    """Of the set's own where a prompt comes twice in it, else of further ones that no reward sees."""
    policy = tiny_policy()
    shown = []

    def colours(images):
        shown.append(images)
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    look = evaluator(policy, images=5)
    look.features = {"clip": colours}
    found = look(policy)
    torch.testing.assert_close(shown.pop(), found.images)
    assert found.diversity.keys() == {"diversity_clip", "vendi_clip"}
    assert found.summary()["guard"].items() >= found.diversity.items()
    look = evaluator(policy, images=3, diversity_images=8)
    look.features = {"clip": colours}
    assert look.sibling_prompts == [PROMPTS[0], PROMPTS[1]] * 4
    found = look(policy)
    (seen,) = shown
    assert (len(found.images), len(seen)) == (3, 8)
    assert largest_difference(seen[:2], seen[2:4]) > 1e-3  # with seeds of their own
    assert found.diversity["diversity_clip"] == pytest.approx(mean_distance(colours(seen), look.sibling_prompts))
    assert evaluator(policy, images=3, diversity_images=0)(policy).diversity == {}
    assert evaluator(policy, images=3, diversity_images=4)(policy).diversity.keys() == {"diversity"}


def test_the_divergence_from_the_base_model():
    policy = tiny_policy()
    look = evaluator(policy, images=4, diversity_images=3)
    assert look(policy).kl.tolist() == [0.0] * 3
    stir(policy)
    found = look(policy)
    assert found.summary()["kl"] == mean_interval(found.kl)
    # The same paths, by the rollout: of every noisy step's divergence, the sum.
    index, seeds = torch.arange(3), found.seeds[:3]
    conditioning = policy.denoiser.encode(PROMPTS)
    path = rollout(policy, conditioning, index, seeds)
    actions = path.steps.shape[1]
    states, steps = path.states.flatten(0, 1), path.steps.flatten()
    with policy.reference(), torch.no_grad():
        _, means, stds = policy.step(states, steps, conditioning.take(index.repeat_interleave(actions)))
    each = gaussian.kl(path.means.flatten(0, 1), means, stds, "sum").view(3, actions)
    torch.testing.assert_close(found.kl, each.sum(1))
    assert (found.kl > 0).all()
    assert evaluator(policy, images=4, diversity_images=0)(policy).kl is None


def test_without_a_judge_and_without_a_prompt_twice():
    images = torch.rand(2, 3, 8, 8)
    summary = Evaluation(images, ["a", "b"], [0, 1], {"total": torch.ones(2)}, None, 1.0).summary()
    assert summary["judge"] is None
    assert "diversity" not in summary["guard"]
    assert "kl" not in summary


def test_the_change_of_pairs_has_the_interval_of_their_differences():
    generator = torch.Generator().manual_seed(0)
    scene, gain = 10 * torch.randn(50, generator=generator), 1 + 0.1 * torch.randn(50, generator=generator)
    right = torch.tensor([0.0, 1.0, float("nan")] + 47 * [1.0])

    def evaluation(total, judged):
        rewards = {"total": total, "mine": 2 * total}
        return Evaluation(torch.rand(50, 3, 8, 8), ["a"] * 50, list(range(50)), rewards, {"right": judged}, 1.0)

    before, after = evaluation(scene, right), evaluation(scene + gain, torch.ones(50))
    each = json.loads(json.dumps(before.each()))
    assert set(each) == {"reward", "rewards.mine", "judge.right"}
    assert each["judge.right"][:3] == [0, 1, None]
    found = after.change(each)
    assert found["reward"]["mean"] == pytest.approx(float(gain.mean()), abs=1e-4)
    assert found["reward"]["ci95"] == pytest.approx(mean_interval(gain)["ci95"], rel=1e-3)
    assert found["reward"]["ci95"] < before.summary()["reward"]["ci95"] / 50
    assert found["rewards.mine"]["mean"] == pytest.approx(2 * found["reward"]["mean"], rel=1e-3)
    assert found["judge.right"] == pytest.approx(mean_interval(torch.tensor([1.0] + 48 * [0.0])))
    assert after.change({"reward": each["reward"][:-1]}) == {}, "of another set"


def test_mean_interval():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, float("nan")])
    found = mean_interval(values)
    assert found["mean"] == 2.5
    assert found["ci95"] == pytest.approx(1.96 * (5 / 3) ** 0.5 / 2)
    assert mean_interval(torch.tensor([3.0])) == {"mean": 3.0, "ci95": 0.0}


def test_guard_figures():
    flat = torch.cat([torch.zeros(2, 3, 32, 32), torch.ones(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5)])
    found = guard(flat)
    assert found["saturated"] == pytest.approx(0.75)
    assert (found["near_black"], found["near_white"]) == (0.5, 0.25)
    assert found["high_frequency"] == pytest.approx(0, abs=1e-10)
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert guard(noise)["high_frequency"] == pytest.approx(8 / 9 / 12, rel=0.05)
