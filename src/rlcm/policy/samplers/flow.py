"""Stochastic sampling of flow-matching models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlcm.errors import SamplerError
from rlcm.policy.samplers.columns import make_table
from rlcm.types import TransitionTable


def flow(scheduler: Any, num_steps: int, *, sigmas: Sequence[float] | None = None, mu: float | None = None) -> TransitionTable:
    """Stochastic flow matching, on the straight path x = (1 - sigma) x0 + sigma z of Lipman et al. 2022 (arXiv:2210.02747).

        x0 = x - sigma m,  mean = (1 - sigma') x0,  std = sigma';  the last step: sigma' = 0, no noise

    Note:
        `sigmas` are the noise levels before the scheduler's shift, e.g. [1, .75, .5, .25], as Flux's pipeline passes them;
        `mu` belongs to dynamic shifting and has no effect otherwise. Without `sigmas` the schedule runs down to the smallest
        training sigma, and shifts it twice (shift 3, 4 steps: 1, .858, .602, .0089): one step is then almost without noise,
        changes nothing and has huge ratios. Such a schedule is refused.
    """
    config = scheduler.config
    name = type(scheduler).__name__
    if config.invert_sigmas:
        raise SamplerError(f"invert_sigmas=True of {name} runs from data to noise; use a scheduler with invert_sigmas=False.")
    if getattr(scheduler, "_scale_factors", None):
        raise SamplerError(f"scale_factors of {name} changes the latent's size between steps; use a scheduler without it.")
    scheduler.set_timesteps(num_steps, sigmas=None if sigmas is None else list(sigmas), mu=mu)
    sigma = scheduler.sigmas.cpu().double()
    now, after = sigma[:-1], sigma[1:]
    if sigmas is None and num_steps > 1 and after[:-1].min() < 0.05:
        levels = [round(value, 4) for value in sigma.tolist()]
        even = [round(1 - i / num_steps, 4) for i in range(num_steps)]
        raise SamplerError(
            f"The default schedule of {name} in {num_steps} steps, sigma={levels}, has a step almost without noise, whose "
            f"ratios are huge and which changes nothing. Pass the noise levels before the shift, e.g. sigmas={even}."
        )
    return make_table(scheduler, num_steps, x0=(torch.ones_like(now), -now), b0=1 - after, std=after)


def flow_euler(
    scheduler: Any, num_steps: int, *, sigmas: Sequence[float] | None = None, mu: float | None = None
) -> TransitionTable:
    """Flow matching with `stochastic_sampling=True`: the equation of `flow`; without it the sampler is an ODE solver."""
    if not scheduler.config.stochastic_sampling:
        raise SamplerError(
            "stochastic_sampling=False of FlowMatchEulerDiscreteScheduler is deterministic: there is no action to reinforce. "
            "Use FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, stochastic_sampling=True)."
        )
    return flow(scheduler, num_steps, sigmas=sigmas, mu=mu)
