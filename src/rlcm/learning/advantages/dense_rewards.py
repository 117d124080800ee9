"""Dense rewards: a reward for every action, from predictions along the way, and what is still to come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def scored_calls(num_calls: int, every: int) -> list[int]:
    """Return which of a trajectory's network calls are scored: the first, every n-th after it, and always the last.

    Args:
        num_calls: H >= 1.
        every: n >= 1; 1 scores all of them.

    Raises:
        ValueError: if num_calls or every is below 1.
    """
    if num_calls < 1 or every < 1:
        raise ValueError(f"num_calls and every must be >= 1, got {num_calls} and {every}")
    return sorted({*range(0, num_calls, every), num_calls - 1})


def hold_potentials(scores: Tensor, scored: Sequence[int], num_calls: int) -> Tensor:
    """Return a potential for every network call, each the last one scored up to there.

    An action then sees only what was known before it was drawn, so `reward_to_go` of the shaped rewards stays unbiased.

    Args:
        scores: [B, S] rewards of the predictions at the calls `scored`.
        scored: S ascending calls, as `scored_calls` returns them: they begin with 0 and end with num_calls - 1.
        num_calls: H.

    Returns:
        [B, H].

    Raises:
        ValueError: if the calls are not ascending from 0 to num_calls - 1, or not one a column.
    """
    calls = torch.tensor(scored)
    if scores.dim() != 2 or scores.shape[1] != len(scored):
        raise ValueError(f"scores must be [B, {len(scored)}], got {list(scores.shape)}")
    if len(scored) == 0 or scored[0] != 0 or scored[-1] != num_calls - 1 or bool((calls.diff() <= 0).any()):
        raise ValueError(f"scored must ascend from 0 to {num_calls - 1}, got {list(scored)}")
    column = torch.searchsorted(calls, torch.arange(num_calls), right=True) - 1
    return scores[:, column.to(scores.device)]


def shaped_rewards(potentials: Tensor) -> Tensor:
    """Return the reward of every network call of a trajectory, from the rewards of its x_0 predictions.

        r_0 = R(x0_0),   r_t = R(x0_t) - R(x0_{t-1}),   sum_t r_t = R(x0_{H-1})

    Potential-based shaping, Ng et al. 1999: the sum telescopes to the final reward, so the optimum is unchanged.

    Args:
        potentials: [B, H] R of the prediction of every call; the last is the image's.

    Returns:
        [B, H]. Column t + 1 is what the action drawn at call t earned; column 0 no action had a part in, so the rewards of
        the H - 1 actions are the columns 1 onwards.

    Raises:
        ValueError: if potentials is not [B, H] with H >= 1.
    """
    if potentials.dim() != 2 or potentials.shape[1] < 1:
        raise ValueError(f"potentials must be [B, H] with H >= 1, got {list(potentials.shape)}")
    return torch.cat((potentials[:, :1], potentials.diff(dim=1)), dim=1)


def reward_to_go(rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """Return what is still to come from every action on.

        G_t = sum_{k >= t} gamma^(k - t) r_k

    For shaped rewards and gamma = 1 this is R(x0_final) - R(x0_t): the final reward against the prediction as a baseline.
    Below 1 near gains count more than the final reward, and the optimum moves.

    Args:
        rewards: [B, A] reward of every action.
        gamma: discount, 0 .. 1.

    Returns:
        [B, A].

    Raises:
        ValueError: if rewards is not [B, A] or gamma is out of range.
    """
    return _discounted_sum(rewards, _unit("gamma", gamma))


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalised advantage estimates.

        A_t = sum_{k >= t} (gamma lam)^(k - t) delta_k,   delta_t = r_t + gamma V_{t+1} - V_t,   V after the last action = 0

    Schulman et al. 2015, eq. 16 (arXiv:1506.02438). lam = 0 is delta_t: little variance, all of V's error; lam = 1 is
    reward-to-go minus V_t: unbiased whatever V is.

    Args:
        rewards: [B, A] reward of every action.
        values: [B, A] expected reward-to-go of the states in which they were drawn.
        gamma: discount, 0 .. 1.
        lam: 0 .. 1.

    Returns:
        [B, A].

    Raises:
        ValueError: if the shapes disagree or gamma or lam is out of range.
    """
    if values.shape != rewards.shape or rewards.dim() != 2:
        raise ValueError(f"rewards and values must both be [B, A], got {list(rewards.shape)} and {list(values.shape)}")
    following = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    delta = rewards + _unit("gamma", gamma) * following - values
    return _discounted_sum(delta, gamma * _unit("lam", lam))


def _discounted_sum(values: Tensor, factor: float) -> Tensor:
    if values.dim() != 2:
        raise ValueError(f"rewards must be [B, A], got {list(values.shape)}")
    result = values.clone()
    for t in range(values.shape[1] - 2, -1, -1):
        result[:, t] += factor * result[:, t + 1]
    return result


def _unit(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be within 0 .. 1, got {value}")
    return value
