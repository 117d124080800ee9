"""From diffusers pipelines to a `rlcm.types.Denoiser`, a class a family of models.

pipeline = load_pipeline(ModelSettings(path="builtin"))
denoiser = make_denoiser(pipeline, SamplerSettings(steps=4))
"""

from __future__ import annotations

from typing import Any

from rlcm.errors import ConfigError
from rlcm.pipelines.base import PipelineDenoiser
from rlcm.pipelines.described import bare_network, unpinned
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.licences import restrictions
from rlcm.pipelines.loading import load_pipeline
from rlcm.pipelines.memory import MemoryEstimate, estimate
from rlcm.pipelines.scheduling import build, preview_table
from rlcm.pipelines.settings import LoraSettings, ModelSettings, SamplerSettings
from rlcm.pipelines.truncation import truncated_prompts


def make_denoiser(pipeline: Any, sampler: SamplerSettings, model: ModelSettings | None = None) -> PipelineDenoiser:
    """Return the denoiser of a pipeline and its sampler.

    Args:
        pipeline: as `load_pipeline` returns it.
        sampler: which scheduler, how many steps, how much guidance. The pipeline gets this scheduler.
        model: the settings that it was loaded with; sizes and offloading are read from it.

    Raises:
        ConfigError: if the sampler does not fit this family of models, or the size does not fit its grid.
        SamplerError: if the sampler is not a table of Gaussian transitions.
    """
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise ConfigError(f"{name} is a pipeline that rlcm cannot train; it takes {', '.join(FAMILIES)}.")
    return build(FAMILIES[name], pipeline, sampler, model or ModelSettings())


__all__ = [
    "FAMILIES",
    "LoraSettings",
    "MemoryEstimate",
    "ModelSettings",
    "PipelineDenoiser",
    "SamplerSettings",
    "bare_network",
    "estimate",
    "load_pipeline",
    "make_denoiser",
    "preview_table",
    "restrictions",
    "truncated_prompts",
    "unpinned",
]
