"""Learning on the forward process: the sampler's own noise levels, and gradients against plain loops."""

import diffusers
import pytest
import torch
from tiny_pipelines import schedule
from tiny_runs import PROMPTS, STEPS, largest_difference, stir, tiny_config, tiny_denoiser, tiny_policy

from rlcm.errors import ConfigError
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.forward import ForwardMatching, first_std, marginals, noised
from rlcm.learning.losses import nft
from rlcm.learning.optimisation import Optimisation, OptimizerSettings
from rlcm.policy.rollout import rollout
from rlcm.policy.samplers import build_table
from rlcm.processes.distributed import World

COUNT = 5


def lcm(steps):
    scheduler = diffusers.LCMScheduler(**schedule(clip_sample=False))
    table = build_table(scheduler, steps)
    abar = scheduler.alphas_cumprod[scheduler.timesteps[1:].cpu()]
    return table, 1.0, abar.sqrt(), (1 - abar).sqrt()


def flow(steps, eta=1.0):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    table = build_table(scheduler, steps, sigmas=[1 - i / steps for i in range(steps)], eta=eta)
    sigma = scheduler.sigmas[1:-1]
    return table, 1.0, 1 - sigma, sigma


def ancestral(steps):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**schedule(timestep_spacing="trailing"))
    table = build_table(scheduler, steps)
    sigma = scheduler.sigmas[1:-1]
    # The image comes in by (1 - r) of what is not there yet, r = sigma'^2 / sigma^2: of nothing at the start.
    return table, float(scheduler.sigmas[0]), 1 - (sigma / scheduler.sigmas[0]).square(), None


@pytest.mark.parametrize(
    "case", [lcm(4), flow(4), flow(4, 0.5), flow(3, 0.1), ancestral(4)], ids=["lcm", "flow", "cps", "eta", "euler"]
)
def test_noise_levels_are_those_of_the_scheduler(case):
    table, first, alphas, sigmas = case
    alpha, sigma = marginals(table, first)
    assert (alpha[0], sigma[0]) == (0, pytest.approx(first))
    torch.testing.assert_close(alpha[1:], alphas.float(), rtol=1e-5, atol=1e-6)
    if sigmas is not None:
        torch.testing.assert_close(sigma[1:], sigmas.float(), rtol=1e-5, atol=1e-6)


def test_a_sampler_whose_predictions_are_right_has_these_levels():
    # Every prediction is one image x0: then the latents at each row are alpha x0 + sigma z. Many draws, against the closed form.
    table, first, *_ = ancestral(4)
    alpha, sigma = marginals(table, first)
    x0, generator = 2.0, torch.Generator().manual_seed(0)
    x = first * torch.randn(40_000, generator=generator)
    for row in range(len(table) - 1):
        assert float(x.mean()) == pytest.approx(float(alpha[row]) * x0, abs=4 * float(sigma[row]) / 200)
        assert float(x.std()) == pytest.approx(float(sigma[row]), rel=0.02)
        output = (x0 - table.ax[row] * x) / table.am[row]
        mean = table.b0[row] * x0 + table.bx[row] * x + table.bm[row] * output
        x = mean + table.std[row] * torch.randn(len(x), generator=generator)


def updater(policy, micro_batch_size=64, **algorithm):
    settings = AlgorithmSettings(**{"loss": "awm", "kl_coefficient": 0.0, "kl_target": None, "clip_range": 1e3, **algorithm})
    optimisation = Optimisation(policy, OptimizerSettings(max_grad_norm=1e9, lr=3e-3), World())
    return ForwardMatching(optimisation, settings, Leash(settings), micro_batch_size)


@pytest.fixture
def situation():
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(COUNT, *policy.denoiser.latent_shape, generator=generator)
    advantages = torch.randn(COUNT, generator=generator)
    index = torch.arange(COUNT) % len(PROMPTS)
    levels = marginals(policy.table, first_std(policy.denoiser))
    experience = noised(policy.denoiser, levels, images, index, advantages, list(range(COUNT)), STEPS)
    return policy, conditioning, experience, torch.arange(COUNT).repeat_interleave(STEPS)


def gradients(update, conditioning, experience, whose):
    update.optimisation.optimizer.step = lambda: None
    metrics = update.update(experience, whose, COUNT, conditioning, torch.Generator().manual_seed(0), 3e-3)
    return [p.grad.clone() for p in update.policy.parameters], metrics


def test_states_are_their_images_at_each_level_of_the_sampler(situation):
    policy, _, experience, _ = situation
    alpha, sigma = marginals(policy.table, first_std(policy.denoiser))
    assert experience.steps.view(COUNT, STEPS).sort(1).values.tolist() == [list(range(STEPS))] * COUNT
    shape = (-1, 1, 1, 1)
    noise = (experience.states - alpha[experience.steps].view(shape) * experience.actions[:, 0]) / sigma[experience.steps].view(
        shape
    )
    assert float(noise.mean()) == pytest.approx(0, abs=0.06)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("micro_batch_size", [2, 64])
@pytest.mark.parametrize("loss", ["awm", "nft"])
def test_the_gradient_on_policy_is_that_of_a_plain_loop(situation, loss, micro_batch_size):
    policy, conditioning, experience, whose = situation
    found, metrics = gradients(updater(policy, micro_batch_size, loss=loss), conditioning, experience, whose)
    alpha, sigma = marginals(policy.table, first_std(policy.denoiser))
    weight = (alpha.square() + sigma.square()) / sigma.square()
    policy.denoiser.module.zero_grad(set_to_none=True)
    for n in range(len(experience)):
        rows = slice(n, n + 1)
        guess, _, _ = policy.step(
            experience.states[rows], experience.steps[rows], conditioning.take(experience.prompt_index[rows])
        )
        target, advantage = experience.actions[n], experience.advantages[n, 0]
        if loss == "awm":  # -A grad(-d), the ratio being 1
            value = advantage * weight[experience.steps[n]] * (guess - target).square().mean()
        else:
            value = nft(guess, guess.detach(), target, (0.5 + advantage / 20).view(1), beta=1.0).sum()
        (value / len(experience)).backward()
    scale = max(float(p.grad.abs().max()) for p in policy.parameters)
    assert scale > 1e-6
    assert max(largest_difference(f, p.grad) for f, p in zip(found, policy.parameters, strict=True)) < 1e-4 * scale
    assert metrics["ratio_deviation_max"] == 0
    assert metrics["matching"] > 0


def test_a_second_step_is_taken_against_the_policy_of_the_rounds_start(situation):
    policy, conditioning, experience, whose = situation
    update = updater(policy, inner_epochs=2)
    metrics = update.update(experience, whose, COUNT, conditioning, torch.Generator().manual_seed(0), 3e-3)
    assert 0 < metrics["ratio_deviation"] < metrics["ratio_deviation_max"]
    assert metrics["kl_from_sampling"] > 0


def test_good_images_come_closer_and_bad_ones_go(situation):
    policy, conditioning, experience, whose = situation
    experience.advantages = torch.where(whose < 2, 1.0, -1.0)[:, None]

    def distances():
        rows = conditioning.take(experience.prompt_index)
        with torch.no_grad():
            guess = policy.step(experience.states, experience.steps, rows)[0]
        each = (guess - experience.actions[:, 0]).square().flatten(1).mean(1)
        return float(each[whose < 2].mean()), float(each[whose >= 2].mean())

    good, bad = distances()
    update = updater(policy)
    for _ in range(3):
        update.update(experience, whose, COUNT, conditioning, torch.Generator().manual_seed(0), 3e-3)
    better, worse = distances()
    assert better - good < worse - bad


def test_the_leash_draws_the_policy_back_to_the_base(situation):
    policy, conditioning, experience, whose = situation
    experience.advantages = torch.zeros_like(experience.advantages)
    update = updater(policy, kl_coefficient=1.0)
    first = update.update(experience, whose, COUNT, conditioning, torch.Generator().manual_seed(0), 3e-3)
    for _ in range(4):
        last = update.update(experience, whose, COUNT, conditioning, torch.Generator().manual_seed(0), 3e-3)
    assert 0 < last["kl"] < first["kl"]


def test_images_without_a_score_drop_out():
    policy = stir(tiny_policy())
    conditioning = policy.denoiser.encode(PROMPTS)
    branched = {"branch_steps": torch.tensor([0, 1]), "branches": 3, "keep_targets": "final"}
    trajectory = rollout(policy, conditioning, torch.tensor([0, 2]), [1, 2], **branched)
    known = torch.tensor([[True, False, True], [True, True, True]])
    advantages = torch.arange(6.0).view(2, 3)
    experience, whose = updater(policy, noise_levels=2).of_images(trajectory, torch.arange(2), known, advantages, [1, 2])
    assert whose.tolist() == [0] * 4 + [1] * 6
    assert experience.advantages[::2, 0].tolist() == [0, 2, 3, 4, 5]
    assert experience.prompt_index.tolist() == [0] * 4 + [2] * 6
    torch.testing.assert_close(experience.actions[4, 0], trajectory.targets[1, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "nft", "noise_levels": 9}, "noise_levels=9 is more than the 3 steps"),
        ({"loss": "awm", "kl_coefficient": 0.1, "kl_form": "reward"}, "kl_form=reward has no meaning for algorithm.loss=awm"),
        ({"loss": "nft", "dense_every": 1}, "dense_every=1 has no meaning for algorithm.loss=nft"),
        (
            {"loss": "divergence_ppo", "normalise_ratio": True},
            "normalise_ratio=true is for the clip of algorithm.loss=ppo_clip",
        ),
        ({"last_call_weight": 1, "minibatches": 2}, "last_call_weight=1 follows the reward's gradient in one update a round"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, algorithm=changes)


def test_denoisers_scale_is_the_std_of_the_first_latents():
    assert first_std(tiny_denoiser()) == 1.0
