"""Baselines: a reward against the batch, against its group, or against the others of its group."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcm.learning.advantages.standardising import EPS, checked_values, like, standardise


def batch(rewards: Tensor, *, normalise_std: bool = True) -> Tensor:
    """Return advantages against the whole batch.

        A = (r - mean) / (std + 1e-6)

    Args:
        rewards: [B], finite.
        normalise_std: False subtracts the mean only.

    Returns:
        [B] advantages; all 0 where the rewards are all equal (or there is one).

    Raises:
        ValueError: if rewards is not [B] or not finite.
    """
    values = checked_values(rewards)
    return like(standardise(values, values, normalise_std), rewards)


def group(rewards: Tensor, group_index: Tensor, *, normalise_std: bool = True) -> Tensor:
    """Return advantages against the other images of the same group.

        A = (r - mean_g) / (std_g + 1e-6)

    Shao et al. 2024, section 4.1 (GRPO, arXiv:2402.03300); without the division, Liu et al. 2025 (arXiv:2503.20783): the
    division gives groups of small spread a larger say.

    Args:
        rewards: [B], finite.
        group_index: [B] integers; equal means same group (the prompt, or the state of branched rollouts).
        normalise_std: False subtracts the mean only.

    Returns:
        [B] advantages; 0 throughout a group of one image or of equal rewards, which has nothing to compare.

    Raises:
        ValueError: if the shapes disagree or a reward is not finite.
    """
    values, groups, count = _groups(rewards, group_index)
    sizes = _sum(torch.ones_like(values), groups, count)
    centred = values - (_sum(values, groups, count) / sizes)[groups]
    centred[_flat(values, groups, count)[groups]] = 0
    if normalise_std:
        std = (_sum(centred.square(), groups, count) / sizes).sqrt()
        centred = centred / (std + EPS)[groups]
    return like(centred, rewards)


def leave_one_out(rewards: Tensor, group_index: Tensor, *, normalise_std: bool = False) -> Tensor:
    """Return advantages against the mean of the group's OTHER images.

        A_i = r_i - mean_{j != i} r_j = n / (n - 1) (r_i - mean)

    Kool et al. 2019; RLOO, Ahmadian et al. 2024 (arXiv:2402.14740). The baseline does not depend on the image that it
    is subtracted for, so the policy gradient is unbiased, in scale as well.

    Args:
        rewards: [B], finite.
        group_index: [B] integers; equal means same group.
        normalise_std: True divides by the root mean square of all answers + 1e-6: one number for the whole batch, since the
            group's own spread would give `group` again, times n / (n - 1).

    Returns:
        [B] advantages; 0 throughout a group of one image (no other to compare with) or of equal rewards.

    Raises:
        ValueError: if the shapes disagree or a reward is not finite.
    """
    values, groups, count = _groups(rewards, group_index)
    sizes = _sum(torch.ones_like(values), groups, count)
    others = (_sum(values, groups, count)[groups] - values) / (sizes[groups] - 1).clamp(min=1)
    result = values - others
    result[_flat(values, groups, count)[groups]] = 0
    if normalise_std and len(result):
        result = result / (result.square().mean().sqrt() + EPS)
    return like(result, rewards)


def zero_variance_groups(rewards: Tensor, group_index: Tensor) -> int:
    """Return how many groups teach nothing: all rewards equal, or one image only.

    Args:
        rewards: [B], finite.
        group_index: [B] integers; equal means same group.

    Raises:
        ValueError: if the shapes disagree or a reward is not finite.
    """
    return int(_flat(*_groups(rewards, group_index)).sum())


def clip_advantages(advantages: Tensor, limit: float) -> Tensor:
    """Return the advantages clamped to [-limit, limit].

    Args:
        advantages: any shape.
        limit: > 0.

    Raises:
        ValueError: if limit <= 0.
    """
    if not limit > 0:
        raise ValueError(f"limit must be > 0, got {limit}")
    return advantages.clamp(-limit, limit)


def _groups(rewards: Tensor, group_index: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the values [B], groups renumbered 0 .. G-1 [B], and G."""
    values = checked_values(rewards)
    if group_index.shape != rewards.shape:
        raise ValueError(f"group_index must be {list(rewards.shape)} like rewards, got {list(group_index.shape)}")
    names, groups = group_index.cpu().unique(return_inverse=True)
    return values, groups, len(names)


def _sum(values: Tensor, groups: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, groups, values)


def _flat(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return which groups [G] hold one value only, once or many times."""
    highest = values.new_zeros(count).scatter_reduce(0, groups, values, "amax", include_self=False)
    lowest = values.new_zeros(count).scatter_reduce(0, groups, values, "amin", include_self=False)
    return highest == lowest
