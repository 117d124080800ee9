"""A run's model with what the run has learnt in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlcm.config import TrainConfig
from rlcm.export import tuned_weights
from rlcm.pipelines import load_pipeline
from rlcm.pipelines.settings import ModelSettings


def tuned_pipeline(config: TrainConfig, run: Path | None) -> Any:
    """Return a run's model with its tuned LoRA fused, or the model alone where there is no run.

    Raises:
        MissingFileError: if the run has no tuned weights yet.
    """
    if run is None:
        return load_pipeline(config.model)
    weights = tuned_weights(run)
    lora = {"path": str(weights.parent), "weight_name": weights.name}
    model = config.model.model_dump()
    return load_pipeline(ModelSettings.model_validate(model | {"loras": [*model["loras"], lora]}))
