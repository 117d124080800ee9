"""The choice of the branch step, and the weight that makes up for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

BranchSchedule = Literal["uniform", "last", "mixed"] | Sequence[float]
"""How a branch step is drawn: by name, or one probability a noisy step."""


def branch_probabilities(schedule: BranchSchedule, num_noisy: int) -> Tensor:
    """Return the probability with which each noisy step is the branch step.

    Args:
        schedule: "uniform" 1/A each; "last" always the last noisy step; "mixed" half the draws the last, half uniform; or
            A probabilities that sum to 1.
        num_noisy: A >= 1.

    Returns:
        [A] float64, sums to 1.

    Raises:
        ValueError: if the schedule is unknown, not A long, negative or does not sum to 1 (within 1e-6).
    """
    if num_noisy < 1:
        raise ValueError(f"num_noisy must be >= 1, got {num_noisy}: without a noisy step there is nowhere to branch")
    uniform = torch.full((num_noisy,), 1 / num_noisy, dtype=torch.float64)
    last = torch.zeros(num_noisy, dtype=torch.float64)
    last[-1] = 1
    if isinstance(schedule, str):
        named = {"uniform": uniform, "last": last, "mixed": (uniform + last) / 2}
        if schedule not in named:
            raise ValueError(f"schedule must be uniform, last, mixed or {num_noisy} probabilities, got {schedule!r}")
        return named[schedule]
    given = torch.tensor(list(schedule), dtype=torch.float64)
    if given.shape != (num_noisy,):
        raise ValueError(f"schedule must hold {num_noisy} probabilities, one a noisy step, got {len(given)}")
    if not (bool((given >= 0).all()) and abs(given.sum().item() - 1) <= 1e-6):
        raise ValueError(f"schedule must hold probabilities >= 0 that sum to 1, got {list(schedule)}")
    return given / given.sum()


def choose_branch_steps(
    num_images: int, noisy_steps: Tensor, schedule: BranchSchedule, rng: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the step at which each trajectory branches, and the weight that makes up for the choice.

        E[w g_i] = sum_j p_j (1 / p_j) g_j = sum_j g_j

    so weighted terms of one step estimate the sum over all steps that have a chance. "last" and other schedules with
    zeros leave out the terms of the steps that they never choose.

    The draws are systematic: step j is chosen floor(B p_j) or ceil(B p_j) times, exactly B p_j on average, in random order.
    That varies less than independent draws and has the same expectation.

    Args:
        num_images: B >= 1, of the whole round.
        noisy_steps: [A] table rows of the steps that draw noise.
        schedule: see `branch_probabilities`.
        rng: CPU generator; None takes torch's global one.

    Returns:
        steps: [B] rows out of noisy_steps, on its device.
        weights: [B] float32 1 / p of the chosen step, on its device.

    Raises:
        ValueError: if num_images < 1, noisy_steps is not [A], or the schedule does not fit it.
    """
    if num_images < 1 or noisy_steps.dim() != 1:
        raise ValueError(f"num_images must be >= 1 and noisy_steps [A], got {num_images} and {list(noisy_steps.shape)}")
    probabilities = branch_probabilities(schedule, len(noisy_steps))
    # Only steps with a chance take part, so that rounding at the ends of the scale cannot select another.
    possible = probabilities.nonzero().flatten()
    edges = probabilities[possible].cumsum(0)
    offset = torch.rand((), generator=rng, dtype=torch.float64)
    points = (torch.arange(num_images, dtype=torch.float64) + offset) / num_images
    position = possible[torch.searchsorted(edges, points, right=True).clamp(max=len(possible) - 1)]
    position = position[torch.randperm(num_images, generator=rng)]
    weights = (1 / probabilities[position]).float()
    return noisy_steps[position.to(noisy_steps.device)], weights.to(noisy_steps.device)
