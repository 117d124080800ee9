"""From a diffusers scheduler to its table: which builder serves which scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rlcm.errors import SamplerError
from rlcm.policy.samplers.consistency import consistency
from rlcm.policy.samplers.ddim import ddim
from rlcm.policy.samplers.ddpm import ddpm
from rlcm.policy.samplers.euler_ancestral import euler_ancestral
from rlcm.policy.samplers.flow import flow, flow_euler
from rlcm.policy.samplers.lcm import lcm
from rlcm.policy.samplers.refused import NOT_TABLES
from rlcm.policy.samplers.scm import scm
from rlcm.policy.samplers.tcd import tcd
from rlcm.types import TransitionTable

BUILDERS: Mapping[str, Callable[..., TransitionTable]] = {
    "LCMScheduler": lcm,
    "TCDScheduler": tcd,
    "CMStochasticIterativeScheduler": consistency,
    "SCMScheduler": scm,
    "FlowMatchLCMScheduler": flow,
    "FlowMatchEulerDiscreteScheduler": flow_euler,
    "EulerAncestralDiscreteScheduler": euler_ancestral,
    "DDIMScheduler": ddim,
    "DDPMScheduler": ddpm,
}
"""The supported samplers, by the class name of their diffusers scheduler."""
_DIFFUSION = "DDIMScheduler (eta=1) or EulerAncestralDiscreteScheduler"
_FLOW = "FlowMatchEulerDiscreteScheduler or FlowMatchLCMScheduler"


def build_table(scheduler: Any, num_steps: int, *, eta: float | None = None, **kwargs: Any) -> TransitionTable:
    """Return the table of a diffusers scheduler for `num_steps` steps.

    Calls `scheduler.set_timesteps`, so that afterwards the scheduler object stands at the same schedule.

    Args:
        scheduler: a diffusers scheduler; one of the classes in `BUILDERS`.
        num_steps: network calls of one image, >= 1. One step is a legal table (it draws no noise, see `require_noise`).
        eta: stochasticity of TCD (default .3), DDIM (default 1) and FlowMatchEulerDiscrete (default 1), in (0, 1]; the last
            takes 0 as well, which draws no noise. No other sampler has it.
        kwargs: what the sampler's builder accepts: original_inference_steps and timesteps (LCM, TCD), timesteps
            (CMStochasticIterative: indices; DDPM), timesteps, max_timesteps and intermediate_timesteps (SCM), sigmas and mu
            (the flow-matching ones). None means not given.

    Raises:
        SamplerError: if the sampler cannot be written as a table, or a setting does not fit it.
    """
    class_name = type(scheduler).__name__
    if class_name not in BUILDERS:
        reason = NOT_TABLES.get(class_name, "it is not a supported sampler")
        instead = f"one of {', '.join(BUILDERS)}"
        if class_name in NOT_TABLES:
            instead = _FLOW if class_name.startswith("FlowMatch") else _DIFFUSION
        raise SamplerError(
            f"scheduler={class_name} cannot be written as a table of Gaussian steps: {reason}. Use {instead}; "
            "TheNewScheduler.from_config(pipeline.scheduler.config) converts one."
        )
    if num_steps < 1:
        raise SamplerError(f"num_steps={num_steps}; use 1 or more.")
    builder = BUILDERS[class_name]
    options = {**({} if eta is None else {"eta": eta}), **{key: value for key, value in kwargs.items() if value is not None}}
    accepted = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key, value in options.items():
        if key not in accepted:
            raise SamplerError(
                f"{key}={value!r} is no setting of {class_name}, which accepts {', '.join(accepted) or 'none'}; remove {key}."
            )
    try:
        return builder(scheduler, num_steps, **options)
    except ValueError as error:
        settings = ", ".join(f"{key}={value!r}" for key, value in {"num_steps": num_steps, **options}.items())
        raise SamplerError(
            f"{class_name} does not accept {settings}: {error} In a configuration these are sampler.steps (--steps of "
            "`rlcm sample`), timesteps, eta and original_inference_steps of sampler."
        ) from error
