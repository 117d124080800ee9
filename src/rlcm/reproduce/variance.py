"""How noisy the policy gradient is when the last step of a consistency model is taken for an action, and when it is not.

The published code draws noise at the last step, too, scores it, and then gives the image without it. The noise can have no part
in the reward, so its term in the gradient has mean 0 and is variance alone:

    g_correct   = mean_i A_i sum_{n < H} grad log p(a_n | s_n)
    g_published = g_correct + mean_i A_i grad log N(a; sqrt(abar) f(x, t), (1 - abar) I),   a drawn from the same Gaussian

with t the last timestep and abar its alphas_cumprod. That noise is independent of all else and has mean 0, so the terms are
uncorrelated and the variances add up; both are estimated from the same trajectories, prompts and rewards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcm import advantages, gaussian
from rlcm.build import Parts, build
from rlcm.config import TrainConfig
from rlcm.noise import image_seed
from rlcm.rollout import rollout
from rlcm.types import Trajectory


def gradient_variance(config: TrainConfig, estimates: int, images: int) -> dict[str, Any]:
    """Return the variances of both gradients, as the trace of their covariance, beside the squared length of their mean.

    Args:
        config: of a plain run whose sampler is LCM with at least two steps.
        estimates: independent estimates of the gradient of the untrained model, two or more.
        images: trajectories of one estimate, two or more.
    """
    parts = build(config)
    actions: list[Tensor] = []
    last_steps: list[Tensor] = []
    for number in range(estimates):
        index = torch.tensor([(number * images + i) % len(parts.prompts) for i in range(images)])
        seeds = [image_seed(config.seed, "variance", number, i) for i in range(images)]
        trajectory = rollout(parts.policy, parts.conditioning, index, seeds)
        prompts = [parts.prompts.prompts[i] for i in index.tolist()]
        metadata = [parts.prompts.metadata[i] for i in index.tolist()]
        worth = advantages.batch(parts.rewards(trajectory.images[:, 0], prompts, metadata).total, normalise_std=True)
        actions.append(_actions_gradient(parts, trajectory, worth, config))
        last_steps.append(_last_step_gradient(parts, trajectory, worth, config, number))
    correct, term = (torch.stack(each).double().var(0).sum().item() for each in (actions, last_steps))
    # The squared length of a mean of n noisy vectors is too long by the variance / n.
    signal = max(torch.stack(actions).double().mean(0).square().sum().item() - correct / estimates, 0.0)
    return {
        "steps": len(parts.policy.table),
        "estimates": estimates,
        "images": images,
        "signal": signal,
        "correct_variance": correct,
        "published_variance": correct + term,
        "variance_ratio": (correct + term) / correct,
    }


def _actions_gradient(parts: Parts, trajectory: Trajectory, worth: Tensor, config: TrainConfig) -> Tensor:
    """Return the gradient over all noisy steps, as one vector."""
    steps = trajectory.steps.shape[1]
    conditions = parts.conditioning.take(trajectory.prompt_index.repeat_interleave(steps))
    _, mean, std = parts.policy.step(trajectory.states.flatten(0, 1), trajectory.steps.flatten(), conditions)
    log_prob = gaussian.log_prob(trajectory.actions.flatten(0, 1), mean, std, config.algorithm.log_prob_reduction)
    return _gradient(parts, (log_prob.view(len(worth), steps).sum(1) * worth).mean())


def _last_step_gradient(parts: Parts, trajectory: Trajectory, worth: Tensor, config: TrainConfig, number: int) -> Tensor:
    """Return the gradient of the noise that never reaches the image, as one vector."""
    policy, denoiser = parts.policy, parts.policy.denoiser
    scheduler = denoiser.pipeline.scheduler  # type: ignore[attr-defined]
    abar = scheduler.alphas_cumprod[int(scheduler.timesteps[-1])].item()
    last = torch.full((len(worth),), len(policy.table) - 1, device=denoiser.device)
    # What the last noisy step drew is what the last call sees.
    clean, _, _ = policy.step(trajectory.actions[:, -1, 0], last, parts.conditioning.take(trajectory.prompt_index))
    mean, std = abar**0.5 * clean, torch.full((len(worth),), (1 - abar) ** 0.5, device=denoiser.device)
    generator = torch.Generator().manual_seed(image_seed(config.seed, "last step", number))
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    action = (mean.detach() + std.view(-1, *[1] * (mean.ndim - 1)) * noise).unsqueeze(1)
    log_prob = gaussian.log_prob(action, mean, std, config.algorithm.log_prob_reduction)
    return _gradient(parts, (log_prob[:, 0] * worth).mean())


def _gradient(parts: Parts, objective: Tensor) -> Tensor:
    gradients = torch.autograd.grad(objective, parts.policy.parameters)
    return torch.cat([gradient.flatten() for gradient in gradients])
