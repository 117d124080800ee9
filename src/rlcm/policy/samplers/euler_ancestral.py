"""Ancestral Euler steps."""

from __future__ import annotations

from typing import Any

import torch

from rlcm.errors import SamplerError
from rlcm.policy.samplers.columns import kept_noise, make_table
from rlcm.types import TransitionTable


def euler_ancestral(scheduler: Any, num_steps: int) -> TransitionTable:
    """Ancestral Euler, Karras et al. 2022 (arXiv:2206.00364) sigmas with k-diffusion's ancestral step; SD-Turbo's sampler.

        mean = (1 - r) x0 + r x,  std = sigma' sqrt(1 - r),  r = sigma'^2 / sigma^2;  the last step: sigma' = 0, no noise
        x0 = x - sigma m  (epsilon),  x / (sigma^2 + 1) - m sigma / sqrt(sigma^2 + 1)  (v)

    Note:
        Latents are variance exploding: they start at init_noise_sigma. Turbo models need timestep_spacing="trailing".
    """
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.cpu().double()
    sigma, sigma_next = sigmas[:-1], sigmas[1:]
    norm = (sigma.square() + 1).sqrt()
    predictions = {"epsilon": (torch.ones_like(sigma), -sigma), "v_prediction": (1 / norm.square(), -sigma / norm)}
    kind = scheduler.config.prediction_type
    if kind not in predictions:
        raise SamplerError(f"prediction_type={kind!r} of EulerAncestralDiscreteScheduler; use one of {', '.join(predictions)}.")
    r = (sigma_next / sigma).square()
    return make_table(
        scheduler,
        num_steps,
        x0=predictions[kind],
        b0=1 - r,
        bx=r,
        std=sigma_next * (1 - r).sqrt(),
        c_in=1 / norm,
        quiet=kept_noise(torch.ones_like(sigma), sigma, torch.ones_like(sigma), sigma_next),
    )
