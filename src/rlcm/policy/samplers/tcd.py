"""The sampler of trajectory consistency distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlcm.policy.samplers.columns import alphas_of, check_eta, make_table, predictions_of, set_timesteps
from rlcm.types import TransitionTable


def tcd(
    scheduler: Any,
    num_steps: int,
    *,
    eta: float = 0.3,
    original_inference_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
) -> TransitionTable:
    """Trajectory consistency distillation, Zheng et al. 2024 (arXiv:2402.19159), strategic stochastic sampling, eta = gamma.

        mean = sqrt(abar'/abar_s) (sqrt(abar_s) x0 + sqrt(1 - abar_s) eps),  std = sqrt(1 - abar'/abar_s)
        s = floor((1 - eta) t');  the last step: t' = s = 0, no noise

    Note:
        Stable Diffusion pipelines call the scheduler with eta = 0 unless told otherwise, which is deterministic: the table's
        default is the scheduler's own .3. `clip_sample` and `thresholding` have no effect in this scheduler.
    """
    check_eta("TCDScheduler", eta)
    set_timesteps(scheduler, num_steps, timesteps, original_inference_steps=original_inference_steps)
    t, abar = scheduler.timesteps.cpu(), alphas_of(scheduler)
    t_next = torch.cat([t[1:], torch.zeros(1, dtype=torch.long)])
    # The scheduler multiplies in float32; float64 can fall on the other side of an integer.
    abar_next, abar_s = abar[t_next], abar[torch.floor((1 - eta) * t_next).long()]
    x0, eps = predictions_of(abar[t], scheduler.config)
    direction = (abar_next / abar_s * (1 - abar_s)).sqrt()
    return make_table(
        scheduler,
        num_steps,
        x0=x0,
        b0=abar_next.sqrt(),
        bx=direction * eps[0],
        bm=direction * eps[1],
        std=(1 - abar_next / abar_s).sqrt(),
        quiet=(abar_next.sqrt(), *((1 - abar_next).sqrt() * part for part in eps)),
    )
