"""DDPM steps with a fixed variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlcm.errors import SamplerError
from rlcm.policy.samplers.columns import alphas_of, beta_of, clip_of, kept_noise, make_table, predictions_of, set_timesteps
from rlcm.types import TransitionTable


def ddpm(scheduler: Any, num_steps: int, *, timesteps: Sequence[int] | None = None) -> TransitionTable:
    """DDPM with a fixed variance, Ho et al. 2020 (arXiv:2006.11239), eq. 7.

        mean = sqrt(abar') beta / (1 - abar) x0 + sqrt(alpha) (1 - abar') / (1 - abar) x,   alpha = abar / abar' = 1 - beta
        std^2 = beta (1 - abar') / (1 - abar)  (fixed_small, fixed_small_log)  or  beta  (fixed_large);  0 at t = 0

    Note:
        The last step has abar' = 1, so the small variance is 0 there (the scheduler draws noise of std 1e-10). With
        fixed_large and a last timestep above 0 its noise stays in the picture, and the step is an action.
    """
    config = scheduler.config
    kind = config.variance_type
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large"):
        reason = "gives NaN in diffusers" if kind == "fixed_large_log" else "makes the std depend on the network"
        raise SamplerError(
            f"variance_type={kind!r} of DDPMScheduler {reason}; use fixed_small, fixed_small_log or fixed_large, "
            "or DDIMScheduler with eta=1."
        )
    set_timesteps(scheduler, num_steps, timesteps)
    t, abar = scheduler.timesteps.cpu(), alphas_of(scheduler)
    abar_t, abar_next = abar[t], torch.cat([abar[t[1:]], torch.ones(1, dtype=torch.float64)])
    beta = beta_of(abar_t, abar_next)
    variance = beta if kind == "fixed_large" else beta * (1 - abar_next) / (1 - abar_t)
    return make_table(
        scheduler,
        num_steps,
        x0=predictions_of(abar_t, config)[0],
        b0=abar_next.sqrt() * beta / (1 - abar_t),
        bx=(1 - beta).sqrt() * (1 - abar_next) / (1 - abar_t),
        std=torch.where(t > 0, variance, 0.0).sqrt(),
        clip=clip_of(config),
        quiet=kept_noise(abar_t.sqrt(), (1 - abar_t).sqrt(), abar_next.sqrt(), (1 - abar_next).sqrt()),
    )
