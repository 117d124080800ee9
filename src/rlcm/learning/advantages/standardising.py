"""Rewards in float64 on the CPU, standardised, and back: what the baselines and the statistics of prompts share."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
"""Added to a standard deviation before dividing by it."""


def checked_values(rewards: Tensor) -> Tensor:
    """Return rewards [B] in float64 on the CPU, without gradient.

    Raises:
        ValueError: if rewards is not [B] or not finite.
    """
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be [B], got {list(rewards.shape)}")
    values = rewards.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError(f"rewards must be finite, got {int((~values.isfinite()).sum())} that are not")
    return values


def like(result: Tensor, rewards: Tensor) -> Tensor:
    """Return a result in float32 on the rewards' device."""
    return result.float().to(rewards.device)


def standardise(values: Tensor, population: Tensor, normalise_std: bool) -> Tensor:
    """Return values minus the population's mean, over its standard deviation if wished; 0 where all of it is equal."""
    # Compared, not std == 0: the mean of equal numbers is not always one of them.
    if len(population) == 0 or bool((population == population[0]).all()):
        return torch.zeros_like(values)
    centred = values - population.mean()
    return centred / (population.std(correction=0) + EPS) if normalise_std else centred
