"""Reward back-propagation: its gradient is that of the reward of the image, through as many calls as asked for."""

import pytest
import torch
from tiny_runs import PROMPTS, STEPS, brightness, largest_difference, stir, tiny_denoiser, tiny_policy

from rlcm.errors import ConfigError, PreflightError
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.backprop import RewardBackprop
from rlcm.learning.optimisation import Optimisation, OptimizerSettings
from rlcm.policy.noise import draw, stream
from rlcm.policy.rollout import rollout
from rlcm.processes.distributed import World
from rlcm.rewards import RewardMix, Scores

INDEX = torch.tensor([2, 0, 1])
SEEDS = [11, 12, 13]


class Contrast:
    """A reward that depends on the image non-linearly."""

    differentiable = True

    def __call__(self, images, prompts):
        return images.square().mean((1, 2, 3))


def backprop(policy, micro_batch_size=64, reward=None, **algorithm):
    settings = AlgorithmSettings(**{"loss": "reward_backprop", "kl_coefficient": 0.0, "kl_target": None, **algorithm})
    optimisation = Optimisation(policy, OptimizerSettings(max_grad_norm=1e9, lr=3e-3), World())
    mix = RewardMix([("contrast", reward or Contrast())])
    return RewardBackprop(optimisation, settings, Leash(settings), mix, micro_batch_size)


def learn(made, lr=3e-3):
    conditions = made.policy.denoiser.encode(PROMPTS).take(INDEX)
    return made.update(conditions, [PROMPTS[i] for i in INDEX], [{}] * 3, SEEDS, 3, lr)


def gradient(made):
    made.optimisation.optimizer.step = lambda: None
    _, metrics = learn(made)
    return [p.grad.clone() for p in made.policy.parameters], metrics


def reward_along(policy, calls):
    """Return the mean reward of the images, with gradient through the last `calls` network calls."""
    conditions = policy.denoiser.encode(PROMPTS).take(INDEX)
    streams = [stream(seed) for seed in SEEDS]
    x = policy.denoiser.scale_noise(draw(streams, policy.denoiser.latent_shape))
    for row, std in enumerate(policy.table.std.tolist()):
        _, mean, _ = policy.step(x, torch.full((3,), row), conditions)
        x = mean + std * draw(streams, x.shape[1:]) if std else mean
        if row < STEPS - calls:
            x = x.detach()
    decoded = policy.denoiser.decode(x)
    shown = decoded.detach().clamp(0, 1)
    return (Contrast()(shown, None) + (2 * shown * (decoded - decoded.detach())).mean((1, 2, 3))).mean()


@pytest.mark.parametrize("micro_batch_size", [1, 64])
@pytest.mark.parametrize("calls", [1, 2, STEPS])
def test_the_gradient_is_that_of_the_reward(calls, micro_batch_size):
    policy = stir(tiny_policy())
    found, metrics = gradient(backprop(policy, micro_batch_size, backprop_calls=calls))
    policy.denoiser.module.zero_grad(set_to_none=True)
    wanted = reward_along(policy, calls)
    (-wanted).backward()
    assert metrics["loss"] == pytest.approx(-wanted.item(), rel=1e-5)
    scale = max(float(p.grad.abs().max()) for p in policy.parameters)
    assert max(largest_difference(f, p.grad) for f, p in zip(found, policy.parameters, strict=True)) < 1e-5 * scale


def test_the_images_are_those_of_a_rollout():
    policy = stir(tiny_policy())
    scores, _ = learn(backprop(policy), lr=1e-9)
    conditioning = policy.denoiser.encode(PROMPTS)
    images = rollout(policy, conditioning, INDEX, SEEDS).images[:, 0]
    assert largest_difference(scores.parts["contrast"], Contrast()(images, None)) < 1e-5


def test_it_learns_and_a_leash_holds_it_back():
    gains = []
    for leash in (0.0, 50.0):
        policy = tiny_policy()
        made = backprop(policy, kl_coefficient=leash)
        rounds = [learn(made, lr=1e-2) for _ in range(12)]
        gains.append((rounds[-1][0].parts["contrast"] - rounds[0][0].parts["contrast"]).mean().item())
        assert ("kl" in rounds[-1][1]) == bool(leash)
    assert gains[0] > 0.005
    assert gains[1] < 0.5 * gains[0]


def test_at_one_step_it_learns_too():
    policy = stir(tiny_policy(tiny_denoiser(steps=1)))
    _, metrics = learn(backprop(policy))
    assert metrics["grad_norm"] > 0


def test_a_reward_without_gradient_is_refused():
    with pytest.raises(ConfigError, match="contrast cannot be differentiated"):
        learn(backprop(tiny_policy(), reward=brightness))


def test_a_reward_that_is_flat_is_refused_before_a_step():
    class Flat(Contrast):
        def __call__(self, images, prompts):
            return (images * 0).sum((1, 2, 3))

    with pytest.raises(PreflightError, match="no gradient of the reward"):
        learn(backprop(tiny_policy(), reward=Flat()))


@pytest.mark.parametrize("at_once", [2, 64])
@pytest.mark.parametrize("branches", [1, 2])
def test_the_gradient_through_the_last_call_is_that_of_the_rewards_of_a_rollout(branches, at_once):
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    branched = {"branch_steps": torch.tensor([0, 1, 1]), "branches": branches} if branches > 1 else {}
    trajectory = rollout(policy, conditioning, INDEX, SEEDS, keep_last=True, **branched)
    images = trajectory.images.flatten(0, 1)
    total = Contrast()(images, None)
    valid = torch.ones(len(total), dtype=torch.bool)
    valid[1] = False
    scores = Scores(total=total, parts={"contrast": total}, valid=valid, failures=[])
    made = backprop(policy, last_call_weight=0.5, loss="ppo_clip")
    made.optimisation.begin()
    also = made.through_last_call(trajectory, torch.arange(3), scores, conditioning, PROMPTS, [{}] * 3)
    also(at_once)
    found = [p.grad.clone() for p in policy.parameters]

    made.optimisation.begin()
    states, rows = trajectory.last_states.flatten(0, 1), INDEX.repeat_interleave(branches)
    _, mean, _ = policy.step(states, torch.full((len(rows),), STEPS - 1), conditioning.take(rows))
    decoded = policy.denoiser.decode(mean)
    assert largest_difference(decoded.clamp(0, 1), images) < 1e-5
    shown = decoded + (decoded.clamp(0, 1) - decoded).detach()
    (-0.5 * Contrast()(shown, None)[valid].mean() / total[valid].std(correction=0)).backward()
    scale = max(float(p.grad.abs().max()) for p in policy.parameters)
    assert max(largest_difference(f, p.grad) for f, p in zip(found, policy.parameters, strict=True)) < 1e-4 * scale
