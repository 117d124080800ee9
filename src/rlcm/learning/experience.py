"""From rollouts to what an update learns from: the states of a round, flat over images and steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcm.types import Experience, Trajectory


def of_actions(trajectory: Trajectory, mine: Tensor, weights: Tensor, known: Tensor) -> tuple[Experience, Tensor]:
    """Return this process's states, flat over images and steps, without advantages yet, and which trajectory each belongs to.

    Args:
        trajectory: of this process.
        mine: [b] which of the round's B trajectories they are.
        weights: [B] of the round's trajectories.
        known: [B] bool: trajectories of the round that have a score; the others drop out.
    """
    steps, branches = trajectory.actions.shape[1:3]
    whose = mine.repeat_interleave(steps)
    experience = Experience(
        states=trajectory.states.flatten(0, 1),
        steps=trajectory.steps.flatten(),
        prompt_index=trajectory.prompt_index.repeat_interleave(steps),
        old_means=trajectory.means.flatten(0, 1),
        actions=trajectory.actions.flatten(0, 1),
        advantages=torch.zeros(len(whose), branches),
        weights=weights[whose],
        targets=None if trajectory.targets is None else trajectory.targets.flatten(0, 1),
    )
    kept = known[whose].nonzero().squeeze(1)
    return (experience, whose) if len(kept) == len(experience) else (experience.take(kept), whose[kept])


def action_number(whose: Tensor) -> Tensor:
    """Return, for states in the order of their trajectories, how many earlier ones belong to the same trajectory."""
    _, inverse, counts = torch.unique_consecutive(whose, return_inverse=True, return_counts=True)
    return torch.arange(len(whose)) - (counts.cumsum(0) - counts)[inverse]
