"""The sampler of latent consistency models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlcm.policy.samplers.columns import alphas_of, clip_of, kept_noise, make_table, predictions_of, set_timesteps
from rlcm.types import TransitionTable


def lcm(
    scheduler: Any, num_steps: int, *, original_inference_steps: int | None = None, timesteps: Sequence[int] | None = None
) -> TransitionTable:
    """Latent consistency model, Luo et al. 2023 (arXiv:2310.04378), multistep sampling.

        mean = sqrt(abar') (c_out x0 + c_skip x),  std = sqrt(1 - abar');  the last step: c_out x0 + c_skip x, no noise
        c_skip = .25 / ((k t)^2 + .25),  c_out = k t / sqrt((k t)^2 + .25),  k = config.timestep_scaling

    Note:
        `original_inference_steps` (50) is the schedule the model was distilled on; the timesteps are a subset of it. The
        scheduler's `strength` (image to image) is not accepted: with custom timesteps it leaves noise in the last step.
    """
    set_timesteps(scheduler, num_steps, timesteps, original_inference_steps=original_inference_steps)
    t = scheduler.timesteps.cpu()
    abar, config = alphas_of(scheduler), scheduler.config
    x0, _ = predictions_of(abar[t], config)
    scaled = t.double() * config.timestep_scaling
    c_skip, c_out = 0.25 / (scaled.square() + 0.25), scaled / (scaled.square() + 0.25).sqrt()
    # The last step keeps the denoised latent: its "next" abar is 1.
    abar_next = torch.cat([abar[t[1:]], torch.ones(1, dtype=torch.float64)])
    b0, bx = kept_noise(abar[t].sqrt(), (1 - abar[t]).sqrt(), abar_next.sqrt(), (1 - abar_next).sqrt())
    return make_table(
        scheduler,
        num_steps,
        x0=x0,
        b0=abar_next.sqrt() * c_out,
        bx=abar_next.sqrt() * c_skip,
        std=(1 - abar_next).sqrt(),
        clip=clip_of(config),
        quiet=(b0 * c_out, b0 * c_skip + bx),
    )
