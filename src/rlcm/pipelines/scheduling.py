"""From sampler settings to a scheduler on the pipeline and its table of transitions."""

from __future__ import annotations

from typing import Any

import diffusers

from rlcm.errors import ConfigError, SamplerError
from rlcm.pipelines.base import PipelineDenoiser
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.samplers import BUILDERS, NOT_TABLES, build_table, check_replay

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lcm": ("LCMScheduler", {"clip_sample": False}),
    "tcd": ("TCDScheduler", {"clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "consistency": ("CMStochasticIterativeScheduler", {}),
    "scm": ("SCMScheduler", {}),
    "flow_lcm": ("FlowMatchLCMScheduler", {}),
    "flow_euler_stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
}
"""The setting's names: a diffusers class, and what differs from the pipeline's own scheduler configuration.

Latents are not bounded by 1, and several schedulers clip unless they are told not to.
"""


def build(family: type[PipelineDenoiser], pipeline: Any, sampler: SamplerSettings, model: ModelSettings) -> PipelineDenoiser:
    """Give the pipeline its scheduler, and return the denoiser with the scheduler's table, checked against its own steps.

    Raises:
        ConfigError, SamplerError: as `make_denoiser`.
    """
    scheduler = choose_scheduler(family, pipeline, sampler)
    options = family.table_options(pipeline, sampler, model)
    table = build_table(scheduler, **options)
    check_replay(table, scheduler, **options)
    pipeline.scheduler = scheduler
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0)) * family.latent_unit(scheduler)
    if sampler.final_std:
        table = table.with_final_std(sampler.final_std)
    return family(pipeline, table, scale, sampler, model)


def choose_scheduler(family: type[PipelineDenoiser], pipeline: Any, sampler: SamplerSettings) -> Any:
    """Return a fresh scheduler: the named one with the pipeline's noise schedule, or a copy of the pipeline's own.

    Raises:
        ConfigError: if this family of models was not trained for that sampler.
        SamplerError: if the pipeline's own scheduler is no table of transitions.
    """
    own, name, kind = pipeline.scheduler, sampler.scheduler, type(pipeline).__name__
    if name == "auto":
        scheduler_class = type(own).__name__
        if scheduler_class not in BUILDERS:
            raise SamplerError(
                f"sampler.scheduler='auto' keeps this model's {scheduler_class}, which cannot be used: "
                f"{NOT_TABLES.get(scheduler_class, 'it is not one of the supported samplers')}. "
                f"Set sampler.scheduler to one of {', '.join(family.schedulers)}."
            )
        return type(own).from_config(own.config)
    if name not in family.schedulers:
        raise ConfigError(
            f"sampler.scheduler={name!r} does not fit {kind}, whose network was not trained for it; "
            f"use auto or one of {', '.join(family.schedulers)}."
        )
    scheduler_class, changes = SCHEDULERS[name]
    return getattr(diffusers, scheduler_class).from_config(own.config, **changes)
