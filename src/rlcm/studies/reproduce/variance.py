"""How noisy the policy gradient is when the last step of a consistency model is taken for an action, and when it is not.

The published code draws noise at the last step, too, scores it, and then gives the image without it. The noise can have no part
in the reward, so its term in the gradient has mean 0 and is variance alone:

    g_correct   = mean_i A_i sum_{n < H} grad log p(a_n | s_n)
    g_published = g_correct + mean_i A_i grad log N(a; sqrt(abar) f(x, t), (1 - abar) I),   a drawn from the same Gaussian

with t the last timestep and abar its alphas_cumprod. Both are estimated from the same trajectories, prompts and rewards. That noise is
independent of all else, so the terms are uncorrelated and the variances add up but for the error of the estimate, whose interval is
the jackknife's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlcm.learning import advantages
from rlcm.policy import gaussian
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import rollout
from rlcm.studies.intervals import student
from rlcm.training.build import Parts, build
from rlcm.training.config import TrainConfig
from rlcm.types import Trajectory


def gradient_variance(config: TrainConfig, estimates: int, images: int) -> dict[str, Any]:
    """Return the variances of both gradients, as the trace of their covariance, beside the squared length of their mean.

    Args:
        config: of a plain run whose sampler is LCM with at least two steps.
        estimates: independent estimates of the gradient of the base model, three or more.
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
    right = torch.stack(actions).double()
    published = right + torch.stack(last_steps).double()
    correct = right.var(0).sum().item()
    ratio, interval = _ratio(published, right)
    # The squared length of a mean of n noisy vectors is too long by the variance / n.
    signal = max(right.mean(0).square().sum().item() - correct / estimates, 0.0)
    return {
        "steps": len(parts.policy.table),
        "estimates": estimates,
        "images": images,
        "signal": signal,
        "correct_variance": correct,
        "published_variance": published.var(0).sum().item(),
        "variance_ratio": ratio,
        "variance_ratio_interval": interval,
    }


def _ratio(above: Tensor, below: Tensor) -> tuple[float, tuple[float, float]]:
    """Return how many times larger the variance of one set of vectors [n, d] is, and the 95 % interval, jackknifed over its log."""

    def log_ratio(a: Tensor, b: Tensor) -> float:
        return math.log(a.var(0).sum().item() / b.var(0).sum().item())

    count = len(above)
    kept = [torch.arange(count) != left_out for left_out in range(count)]
    values = torch.tensor([log_ratio(above[rows], below[rows]) for rows in kept], dtype=torch.float64)
    error = math.sqrt((count - 1) / count * (values - values.mean()).square().sum().item())
    middle, half = log_ratio(above, below), student(count - 1) * error
    return math.exp(middle), (math.exp(middle - half), math.exp(middle + half))


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
