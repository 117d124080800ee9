"""The guidance of a model where `sampler.guidance` is left open and its pipeline, left alone too, would take another."""

from __future__ import annotations

from typing import Any

from rlcm.builtin import is_part
from rlcm.pipelines.described import configuration, local_folder, pipeline_class
from rlcm.pipelines.families import FAMILIES
from rlcm.pipelines.settings import BUILTIN_GUIDANCE, ModelSettings


def guidance_left_open(model: ModelSettings, pipeline: Any = None) -> float | None:
    """Return the guidance scale that a model takes by itself, None where that is its pipeline's default.

    Args:
        pipeline: a loaded one in place of the model of the settings, of which only small files are read.

    Raises:
        MissingFileError, ConfigError: as `load_pipeline`.
    """
    place = local_folder(model) if pipeline is None else getattr(pipeline, "name_or_path", None)
    if is_part(place or ""):
        return BUILTIN_GUIDANCE
    family = FAMILIES.get(pipeline_class(model) if pipeline is None else type(pipeline).__name__)
    if family is None:
        return None
    return family.own_guidance(configuration(model) if pipeline is None else pipeline.config)
