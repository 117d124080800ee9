"""Isotropic Gaussians: the log-probability of an action, the ratio of two policies, KL divergence and entropy.

Every quantity is a sum over the D entries of a latent, divided by what `reduction` names: D ("mean"), sqrt(D) ("sqrt") or
1 ("sum"). Two Gaussians of equal std whose means lie d apart, in units of std, have a summed log-ratio distributed as
N(-d^2/2, d^2); so a clip range on the "sqrt" scale means the same at every resolution, on the "mean" scale it does not.

Letters in shapes: N states, K actions of a state, D entries of a latent.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sqrt", "sum"]
"""What a sum over the D latent entries is divided by: D, sqrt(D) or 1."""


def log_prob(x: Tensor, mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """Log-density of actions under N(mean, std^2 I).

        log p(x) = sum(-(x - mean)^2 / (2 std^2) - log(std) - log(2 pi) / 2) / scale

    Args:
        x: [N, K, *latent] actions, fp32.
        mean: [N, *latent] fp32. Carries grad.
        std: [N], > 0.
        reduction: what the sum over D is divided by: D ("mean"), sqrt(D) ("sqrt"), 1 ("sum").

    Returns:
        [N, K], nats divided by that scale.

    Raises:
        ValueError: if the shapes disagree, a tensor is in half precision, std is not positive (looked at on a CPU only, since
            reading it off an accelerator would wait for it) or the reduction is unknown.
    """
    _check(std, mean, actions=x)
    z = (x - mean.unsqueeze(1)) / _per_state(std, x)
    size = mean[0].numel()
    total = -0.5 * z.square().flatten(2).sum(2) - size * (std.log() + 0.5 * math.log(2 * math.pi)).unsqueeze(1)
    return total / _scale(size, reduction)


def log_ratio(action: Tensor, old_mean: Tensor, new_mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """Log of the ratio p_new(action) / p_old(action) of two Gaussians of equal std.

        log r = sum(z u - u^2 / 2) / scale,   z = (action - old_mean) / std,   u = (new_mean - old_mean) / std

    The difference of two log-probabilities is the same number, but subtracts two sums of about D/2; this form has no such
    cancellation, and is exactly 0 when the means are equal.

    Args:
        action: [N, K, *latent] fp32, what the old policy drew.
        old_mean: [N, *latent] fp32, as stored by the rollout.
        new_mean: [N, *latent] fp32. Carries grad.
        std: [N], > 0.
        reduction: what the sum over D is divided by.

    Returns:
        [N, K], nats divided by that scale.

    Raises:
        ValueError: as `log_prob`.
    """
    _check(std, old_mean, new_mean, actions=action)
    z = (action - old_mean.unsqueeze(1)) / _per_state(std, action)
    u = ((new_mean - old_mean) / _per_state(std, new_mean)).unsqueeze(1)
    return (z * u - 0.5 * u.square()).flatten(2).sum(2) / _scale(old_mean[0].numel(), reduction)


def normalised_log_ratio(action: Tensor, old_mean: Tensor, new_mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """Log-ratio without its bias and without the step's std: of mean 0 under the old policy, whatever the step.

        log r' = std (log r + KL) = sum(z (new_mean - old_mean)) / scale,   z = (action - old_mean) / std

    GRPO-Guard, Wang et al. 2025 (arXiv:2510.22319): log r alone has mean -KL and a spread of |new_mean - old_mean| / std, so one clip
    range holds back steps with little noise and negative advantages more than others.

    Args:
        action: [N, K, *latent] fp32, what the old policy drew.
        old_mean: [N, *latent] fp32.
        new_mean: [N, *latent] fp32. Carries grad.
        std: [N], > 0.
        reduction: what the sum over D is divided by.

    Returns:
        [N, K], in units of the latent. exp(log r') is no ratio of densities.

    Raises:
        ValueError: as `log_prob`.
    """
    _check(std, old_mean, new_mean, actions=action)
    z = (action - old_mean.unsqueeze(1)) / _per_state(std, action)
    moved = (new_mean - old_mean).unsqueeze(1)
    return (z * moved).flatten(2).sum(2) / _scale(old_mean[0].numel(), reduction)


def kl(mean_a: Tensor, mean_b: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """Kullback-Leibler divergence of N(mean_a, std^2 I) from N(mean_b, std^2 I); symmetric, since the stds are equal.

        KL = sum((mean_a - mean_b)^2 / (2 std^2)) / scale

    Args:
        mean_a: [N, *latent] fp32. Carries grad.
        mean_b: [N, *latent] fp32. Carries grad.
        std: [N], > 0.
        reduction: what the sum over D is divided by.

    Returns:
        [N], nats divided by that scale.

    Raises:
        ValueError: as `log_prob`.
    """
    _check(std, mean_a, mean_b)
    u = (mean_a - mean_b) / _per_state(std, mean_a)
    return 0.5 * u.square().flatten(1).sum(1) / _scale(mean_a[0].numel(), reduction)


def entropy(std: Tensor, size: int, reduction: Reduction) -> Tensor:
    """Entropy of N(., std^2 I) in `size` dimensions: size (log(std) + log(2 pi e) / 2) / scale.

    Args:
        std: any shape, > 0.
        size: D, the number of latent entries, >= 1.
        reduction: what the sum over D is divided by.

    Returns:
        std's shape, nats divided by that scale.

    Raises:
        ValueError: if std or size is not positive, or the reduction is unknown.
    """
    _check(std)
    return size * (std.log() + 0.5 * math.log(2 * math.pi * math.e)) / _scale(size, reduction)


def _scale(size: int, reduction: str) -> float:
    if size < 1:
        raise ValueError(f"size={size} latent entries; use 1 or more.")
    scales = {"mean": float(size), "sqrt": math.sqrt(size), "sum": 1.0}
    if reduction not in scales:
        raise ValueError(f"reduction={reduction!r} is unknown; use one of {', '.join(scales)}.")
    return scales[reduction]


def _per_state(std: Tensor, like: Tensor) -> Tensor:
    return std.view(-1, *[1] * (like.dim() - 1))


def _check(std: Tensor, *means: Tensor, actions: Tensor | None = None) -> None:
    # Reading a value off an accelerator would wait for all that it has still to do.
    if std.device.type == "cpu" and not bool((std > 0).all()):
        raise ValueError(f"std={std.min().item()} is not positive: a step without noise has no log-probability; leave it out.")
    for mean in means:
        if mean.shape != means[0].shape or std.shape != mean.shape[:1]:
            raise ValueError(
                f"means {[tuple(m.shape) for m in means]} and std {tuple(std.shape)} must be [N, *latent] and [N]."
            )
    if actions is not None and (actions.dim() < 2 or actions.shape[:1] + actions.shape[2:] != means[0].shape):
        raise ValueError(f"actions {tuple(actions.shape)} must be [N, K, *latent] for means {tuple(means[0].shape)}.")
    for tensor in (*means, *([] if actions is None else [actions])):
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"{tensor.dtype} rounds ratios away (in bfloat16 every ratio is 1); use float32.")
