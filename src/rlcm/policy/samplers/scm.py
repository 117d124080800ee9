"""The sampler of continuous-time consistency models in TrigFlow angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlcm.errors import SamplerError
from rlcm.policy.samplers.columns import kept_noise, make_table
from rlcm.types import TransitionTable


def scm(
    scheduler: Any,
    num_steps: int,
    *,
    timesteps: Sequence[float] | None = None,
    max_timesteps: float | None = None,
    intermediate_timesteps: float | None = None,
) -> TransitionTable:
    """Continuous-time consistency model in TrigFlow angles, Lu and Song 2024 (arXiv:2410.11081); SANA-Sprint's sampler.

        x0 = cos(t) x - sin(t) m,  mean = cos(t') x0,  std = sin(t') config.sigma_data;  the last step: t' = 0, no noise

    Note:
        The schedule has num_steps + 1 angles, custom ones included, and ends at 0. It starts at `max_timesteps` (1.5708);
        two steps pass through `intermediate_timesteps` (1.3), which no other number of steps accepts. m is the TrigFlow
        velocity times sigma_data, as SANA-Sprint's pipeline computes it.
    """
    if scheduler.config.prediction_type != "trigflow":
        raise SamplerError(f"prediction_type={scheduler.config.prediction_type!r} of SCMScheduler; use 'trigflow'.")
    if timesteps is not None:
        angles = [float(angle) for angle in timesteps]
        if len(angles) != num_steps + 1 or angles[-1] != 0:
            raise SamplerError(f"timesteps={angles} of SCMScheduler: use num_steps + 1 = {num_steps + 1} angles that end at 0.")
        scheduler.set_timesteps(num_steps, timesteps=angles, max_timesteps=max_timesteps, intermediate_timesteps=None)
    else:
        middle = 1.3 if num_steps == 2 and intermediate_timesteps is None else intermediate_timesteps
        start = 1.57080 if max_timesteps is None else max_timesteps
        scheduler.set_timesteps(num_steps, max_timesteps=start, intermediate_timesteps=middle)
    angle = scheduler.timesteps.cpu().double()
    t, t_next = angle[:-1], angle[1:]
    return make_table(
        scheduler,
        num_steps,
        x0=(t.cos(), -t.sin()),
        b0=t_next.cos(),
        std=t_next.sin() * scheduler.config.sigma_data,
        quiet=kept_noise(t.cos(), t.sin(), t_next.cos(), t_next.sin()),
    )
