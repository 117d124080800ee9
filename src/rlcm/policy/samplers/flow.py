"""Stochastic sampling of flow-matching models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rlcm.errors import SamplerError
from rlcm.policy.samplers.columns import kept_noise, make_table
from rlcm.types import TransitionTable

OTHER_LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Options of flow-matching schedulers that put other noise levels in place of those of the model's shift."""
LEAST_NOISE = 0.05
"""Noise levels of a default schedule below this are a mistake of the schedule, not a step."""


def flow(scheduler: Any, num_steps: int, *, sigmas: Sequence[float] | None = None, mu: float | None = None) -> TransitionTable:
    """Stochastic flow matching, on the straight path x = (1 - sigma) x0 + sigma z of Lipman et al. 2022 (arXiv:2210.02747).

        x0 = x - sigma m,  mean = (1 - sigma') x0,  std = sigma';  the last step: sigma' = 0, no noise

    Note:
        `sigmas` are the noise levels before the scheduler's shift, e.g. [1, .75, .5, .25], as Flux's pipeline passes them;
        `mu` belongs to dynamic shifting and has no effect otherwise. Without `sigmas` the schedule runs down to the smallest
        training sigma, and shifts it twice (shift 3, 4 steps: 1, .858, .602, .0089): one step is then almost without noise,
        changes nothing and has huge ratios. Such a schedule is refused.
    """
    return flow_euler(scheduler, num_steps, sigmas=sigmas, mu=mu)


def flow_euler(
    scheduler: Any, num_steps: int, *, eta: float = 1.0, sigmas: Sequence[float] | None = None, mu: float | None = None
) -> TransitionTable:
    """Coefficient-preserving sampling of flow matching: a step keeps a part of the latent's noise, and draws the rest anew.

        x0 = x - sigma m,   z = (x - (1 - sigma) x0) / sigma
        mean = (1 - sigma') x0 + sigma' cos(eta pi/2) z,   std = sigma' sin(eta pi/2);   the last step: sigma' = 0, no noise

    eta = 1 draws all noise anew, as `flow` does and the scheduler with `stochastic_sampling=True`; eta = 0 is Euler, the
    scheduler without it. Whatever eta, the latent is at the noise level that the next network call expects. It is eta that
    decides, not `stochastic_sampling` of the scheduler.

    Note:
        eta = 0 draws no noise, so that a policy gradient has nothing to learn from; images can be drawn with it. `sigmas` and
        `mu` as for `flow`. A default schedule with a step almost without noise is refused for eta > 0 alone.
    """
    config = scheduler.config
    name = type(scheduler).__name__
    if not 0 <= eta <= 1:
        raise SamplerError(
            f"eta={eta} of {name} is out of range; use 0 < eta <= 1: 1 redraws all noise (the default), less keeps a part of it."
        )
    if config.invert_sigmas:
        raise SamplerError(f"invert_sigmas=True of {name} runs from data to noise; use a scheduler with invert_sigmas=False.")
    for option in OTHER_LEVELS:
        if config.get(option):
            raise SamplerError(
                f"{option}=True of {name} replaces the noise levels of the model's own shift, for which few-step models are "
                f"distilled; use a scheduler with {option}=False. Levels of your own are sampler.timesteps (sigmas of build_table)."
            )
    if getattr(scheduler, "_scale_factors", None):
        raise SamplerError(f"scale_factors of {name} changes the latent's size between steps; use a scheduler without it.")
    scheduler.set_timesteps(num_steps, sigmas=None if sigmas is None else list(sigmas), mu=mu)
    sigma = scheduler.sigmas.cpu().double()
    now, after = sigma[:-1], sigma[1:]
    levels = [round(value, 4) for value in sigma.tolist()]
    even = [round(1 - i / num_steps, 4) for i in range(num_steps)]
    if not ((now > 0) & (now <= 1)).all():
        raise SamplerError(
            f"The noise levels {levels} of {name} are not all above 0 and up to 1; pass levels that are, one a step, e.g. "
            f"sigmas={even} (sampler.timesteps). The end at 0 is added to them."
        )
    if sigmas is None and num_steps > 1 and eta > 0 and after[:-1].min() < LEAST_NOISE:
        raise SamplerError(
            f"The default schedule of {name} in {num_steps} steps, sigma={levels}, has a step almost without noise, whose "
            f"ratios are huge and which changes nothing. Pass the noise levels before the shift, e.g. sigmas={even}."
        )
    b0, bx = kept_noise(1 - now, now, 1 - after, after)
    # Of 1 - eta the sine is exactly 0 and 1 at both ends, unlike the cosine of eta.
    kept, anew = math.sin((1 - eta) * math.pi / 2), math.sin(eta * math.pi / 2)
    return make_table(
        scheduler,
        num_steps,
        x0=(torch.ones_like(now), -now),
        b0=kept * b0 + (1 - kept) * (1 - after),
        bx=kept * bx,
        std=anew * after,
        quiet=(b0, bx),
    )
