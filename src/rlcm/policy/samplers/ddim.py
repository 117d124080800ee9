"""Stochastic DDIM steps."""

from __future__ import annotations

from typing import Any

import torch

from rlcm.errors import SamplerError
from rlcm.policy.samplers.columns import alphas_of, beta_of, check_eta, clip_of, make_table, predictions_of
from rlcm.types import TransitionTable


def ddim(scheduler: Any, num_steps: int, *, eta: float = 1.0) -> TransitionTable:
    """DDIM, Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16; eta = 1 is DDPO's sampler (arXiv:2305.13301).

        mean = sqrt(abar_p) x0 + sqrt(1 - abar_p - std^2) eps
        std  = eta sqrt((1 - abar_p) / (1 - abar) (1 - abar / abar_p)),   p = t - num_train_timesteps // num_steps

    Note:
        p need not be the next timestep; the scheduler's rule is kept. With `clip_sample` x0 is clipped and eps is not derived
        again from it. The config of Stable Diffusion 1.5 (set_alpha_to_one=False, steps_offset=1) leaves a std of .0206 in
        the last of 50 steps; it is part of the scheduler's picture, so it stays, and that step is an action like the others.
    """
    check_eta("DDIMScheduler", eta)
    scheduler.set_timesteps(num_steps)
    t, abar, config = scheduler.timesteps.cpu(), alphas_of(scheduler), scheduler.config
    p = t - config.num_train_timesteps // num_steps
    abar_t, abar_p = abar[t], torch.where(p >= 0, abar[p.clamp(min=0)], scheduler.final_alpha_cumprod.double().cpu())
    if eta == 1 and not abar_t.all():
        raise SamplerError(
            "eta=1 of DDIMScheduler with rescale_betas_zero_snr=True: its first step takes the root of a rounding error, and "
            "can give NaN in diffusers. Use eta=.999, or rescale_betas_zero_snr=False."
        )
    variance = eta**2 * (1 - abar_p) / (1 - abar_t) * beta_of(abar_t, abar_p)
    x0, eps = predictions_of(abar_t, config)
    direction = (1 - abar_p - variance).clamp(min=0).sqrt()  # clamp: at eta = 1 rounding can leave -1e-17
    return make_table(
        scheduler,
        num_steps,
        x0=x0,
        b0=abar_p.sqrt(),
        bx=direction * eps[0],
        bm=direction * eps[1],
        std=variance.sqrt(),
        clip=clip_of(config),
        quiet=(abar_p.sqrt(), *((1 - abar_p).sqrt() * part for part in eps)),
    )
