"""From sampler settings to a scheduler on the pipeline and its table of transitions."""

from __future__ import annotations

from typing import Any

import diffusers

from rlcm.errors import ConfigError, SamplerError
from rlcm.pipelines.base import PipelineDenoiser
from rlcm.pipelines.described import bare_scheduler, configuration, pipeline_class
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.policy.samplers import BUILDERS, NOT_TABLES, build_table, check_replay
from rlcm.policy.window import with_window
from rlcm.types import TransitionTable

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
    family.check({**getattr(pipeline, family.network).config, **pipeline.config}, sampler, model)
    scheduler = choose_scheduler(family, pipeline.scheduler, sampler, type(pipeline).__name__)
    options = family.table_options(pipeline, sampler, model)
    table = build_table(scheduler, **options)
    check_replay(table, scheduler, **options)
    pipeline.scheduler = scheduler
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0)) * family.latent_unit(scheduler)
    return family(pipeline, _with_chosen_noise(table, sampler), scale, sampler, model)


def preview_table(model: ModelSettings, sampler: SamplerSettings) -> TransitionTable:
    """Return the table that a model will have, before any of its weights is read or downloaded.

    Where the noise levels depend on the image's size (FLUX), they are those of 1024x1024 pixels.

    Raises:
        MissingFileError, ConfigError: if the model is not there or not supported.
        ConfigError, SamplerError: if the sampler does not fit it, or is no table.
    """
    kind = pipeline_class(model)
    family = FAMILIES[kind]
    scheduler = choose_scheduler(family, bare_scheduler(model), sampler, kind)
    config = configuration(model)
    family.check(config, sampler, model)
    options = family.options_before_loading(scheduler, sampler, config)
    table = build_table(scheduler, **options)
    check_replay(table, scheduler, **options)
    return _with_chosen_noise(table, sampler)


def _with_chosen_noise(table: TransitionTable, sampler: SamplerSettings) -> TransitionTable:
    """Return the table with noise in the chosen steps alone; a last one that explores comes on top of them."""
    table = with_window(table, sampler.noisy_steps)
    return table.with_final_std(sampler.final_std) if sampler.final_std else table


def choose_scheduler(family: type[PipelineDenoiser], own: Any, sampler: SamplerSettings, kind: str) -> Any:
    """Return a fresh scheduler: the named one with the model's noise schedule, or a copy of the model's own.

    Args:
        own: the model's scheduler.
        kind: the pipeline's class.

    Raises:
        ConfigError: if this family of models was not trained for that sampler.
        SamplerError: if the pipeline's own scheduler is no table of transitions.
    """
    name = sampler.scheduler
    if name == "auto":
        scheduler_class = type(own).__name__
        if scheduler_class not in BUILDERS:
            raise SamplerError(
                f"sampler.scheduler='auto' keeps this model's {scheduler_class}, which cannot be used: "
                f"{NOT_TABLES.get(scheduler_class, 'it is not one of the supported samplers')}. "
                f"Set sampler.scheduler to one of {', '.join(family.schedulers)}."
            )
        return type(own).from_config(own.config, **changed_shift(family, sampler, kind))
    if name not in family.schedulers:
        raise ConfigError(
            f"sampler.scheduler={name!r} does not fit {kind}, whose network was not trained for it; "
            f"use auto or one of {', '.join(family.schedulers)}."
        )
    scheduler_class, changes = SCHEDULERS[name]
    return getattr(diffusers, scheduler_class).from_config(own.config, **changes, **changed_shift(family, sampler, kind))


def is_flow(family: type[PipelineDenoiser]) -> bool:
    """Return whether the models of a family are sampled by flow matching, with a share of noise that `sampler.eta` says."""
    return "flow_euler_stochastic" in family.schedulers


def changed_shift(family: type[PipelineDenoiser], sampler: SamplerSettings, kind: str) -> dict[str, Any]:
    """Return what `sampler.shift` changes in a scheduler's configuration: one shift at every size, and no level to end at.

    Raises:
        ConfigError: if it is set for a model that is no flow-matching one.
    """
    if sampler.shift is None:
        return {}
    if not is_flow(family):
        raise ConfigError(
            f"sampler.shift={sampler.shift:g} belongs to models of flow matching, and {kind} is none; leave it out."
        )
    return {"shift": sampler.shift, "use_dynamic_shifting": False, "shift_terminal": None}
