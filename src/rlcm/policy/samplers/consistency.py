"""The multistep sampler of consistency models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlcm.policy.samplers.columns import above, kept_noise, make_table, set_timesteps
from rlcm.types import TransitionTable


def consistency(scheduler: Any, num_steps: int, *, timesteps: Sequence[int] | None = None) -> TransitionTable:
    """Consistency model, Song et al. 2023 (arXiv:2303.01469), algorithm 1 and appendix C: variance exploding.

        mean = x0 = clamp(c_out m + c_skip x),  std = s_noise sqrt(sigma'^2 - e^2),  e = config.sigma_min
        c_skip = d^2 / ((sigma - e)^2 + d^2),  c_out = (sigma - e) d / sqrt(sigma^2 + d^2),  d = config.sigma_data

    Note:
        Custom timesteps are indices into the training schedule, e.g. [22, 0]. Steps that end at sigma_min get std 0: the
        scheduler's own value there is the root of a rounding error, and often NaN.
    """
    set_timesteps(scheduler, num_steps, timesteps)
    config = scheduler.config
    d, e = config.sigma_data, config.sigma_min
    sigmas = scheduler.sigmas.cpu().double()
    sigma, sigma_next = sigmas[:-1], sigmas[1:]
    variance = torch.where(above(sigma_next, e), sigma_next.square() - e**2, 0.0)
    norm = (sigma.square() + d**2).sqrt()
    ones = torch.ones_like(sigma)
    # The network's answer still has the noise of sigma_min.
    rest = torch.where(above(sigma_next, e), sigma_next - e, 0.0)
    return make_table(
        scheduler,
        num_steps,
        x0=(d**2 / ((sigma - e).square() + d**2), (sigma - e) * d / norm),
        b0=ones,
        std=config.s_noise * variance.sqrt(),
        c_in=1 / norm,
        clip=1.0 if config.clip_denoised else None,
        quiet=kept_noise(ones, sigma - e, ones, rest),
    )
