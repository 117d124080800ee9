"""Tables of the few-step samplers, built from diffusers scheduler objects, and their check against `scheduler.step`.

A scheduler is read, never imported: its config, its timesteps and its noise levels. Coefficients are computed in float64 from
the scheduler's own numbers and stored in float32. docs/samplers.md lists what is supported and how to add a sampler.

Symbols: t timestep, abar = alphas_cumprod[t], sigma = scheduler.sigmas, m model output; a prime marks the next step.
"""

from __future__ import annotations

from rlcm.policy.samplers.build import BUILDERS, build_table
from rlcm.policy.samplers.refused import NOT_TABLES
from rlcm.policy.samplers.replay import REPLAY_TOLERANCE, check_replay, replay_error

__all__ = ["BUILDERS", "NOT_TABLES", "REPLAY_TOLERANCE", "build_table", "check_replay", "replay_error"]
