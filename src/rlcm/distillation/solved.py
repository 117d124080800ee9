"""Consistency distillation onto solved trajectories: the student learns where the teacher's whole trajectory ends.

Latent consistency distillation (`rlcm.distillation.loss`) compares the student with a slow copy of itself one solver step
further on, so the end of the trajectory reaches the noisy timesteps through some fifty copies, and with few updates what
arrives there is wrong. Where the teacher is small, it is cheaper to solve its trajectories to their ends, once, and to learn
these: the same function, f(x_t, t) = x_0 along the guided ODE, with a target that does not move.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcm.distillation.loss import NoiseSchedule, Run, guidance_embedding, run_unet
from rlcm.types import Conditioning


@torch.no_grad()
def solve(
    teacher: Any,
    schedule: NoiseSchedule,
    x_t: Tensor,
    timesteps: Tensor,
    condition: Conditioning,
    unconditional: Conditioning,
    guidance: Tensor,
    run: Run = run_unet,
) -> tuple[Tensor, Tensor]:
    """Return the states of the guided trajectories from x_t, and where they end.

    The solver is DPM-Solver++ of second order (Lu et al. 2022, arXiv 2211.01095), multistep, with a last step to x_0.

    Args:
        x_t: [B, C, h, w] latents at the first timestep.
        timesteps: [B, K] integer timesteps, falling in every row.
        condition, unconditional: B rows each, for the prompts and for the empty prompt.
        guidance: [B] guidance scales g; the solver follows x_u + g (x_c - x_u).

    Returns:
        States [B, K, C, h, w] at the timesteps, and x_0 [B, C, h, w].
    """
    size, number = timesteps.shape
    both = Conditioning.cat([condition, unconditional])
    scale = guidance.view(-1, *(1,) * (x_t.dim() - 1))
    states, x_0 = [], x_t
    before: tuple[Tensor, Tensor] | None = None  # the last x_0 and logarithm of the signal-to-noise ratio
    for k in range(number):
        states.append(x_t)
        t = timesteps[:, k]
        output = run(teacher, torch.cat([x_t, x_t]), torch.cat([t, t]), both, None)
        x_c, _ = schedule.predict(x_t, output[:size], t)
        x_u, _ = schedule.predict(x_t, output[size:], t)
        x_0 = x_u + scale * (x_c - x_u)
        if k + 1 == number:
            break
        alpha, sigma = schedule.rates(t, x_t)
        next_alpha, next_sigma = schedule.rates(timesteps[:, k + 1], x_t)
        log_snr = (alpha / sigma).log()
        jump = (next_alpha / next_sigma).log() - log_snr
        direction = x_0
        if before is not None:
            last, last_log_snr = before
            share = jump / (2 * (log_snr - last_log_snr))
            direction = (1 + share) * x_0 - share * last
        x_t = next_sigma / sigma * x_t - next_alpha * torch.expm1(-jump) * direction
        before = x_0, log_snr
    return torch.stack(states, dim=1), x_0


def solved_loss(
    student: Any,
    schedule: NoiseSchedule,
    x_t: Tensor,
    timestep: Tensor,
    end: Tensor,
    condition: Conditioning,
    guidance: Tensor,
    *,
    huber_c: float = 1e-3,
    run: Run = run_unet,
) -> Tensor:
    """Return the mean pseudo-Huber distance between f_student(x_t, t) and the end of the trajectory.

        d = sqrt((f - x_0)^2 + c^2) - c

    Args:
        x_t, end: [B, C, h, w] a state of a trajectory, and where this ends.
        timestep: [B] integer timesteps of the states.
        guidance: [B] the guidance scales that the trajectories were solved with.
    """
    embedding = guidance_embedding(guidance, student.config.time_cond_proj_dim)
    found = schedule.consistency(x_t, run(student, x_t, timestep, condition, embedding), timestep)
    return ((found - end).square() + huber_c**2).sqrt().mean() - huber_c
