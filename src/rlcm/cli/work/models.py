"""What MODEL on the command line means."""

from __future__ import annotations

import os
from pathlib import Path

from rlcm.paths import existing
from rlcm.pipelines.settings import BUILTIN, ModelSettings
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.locations import located


def config_of(model: str) -> tuple[TrainConfig, Path | None]:
    """Return the configuration that MODEL on the command line means, and its folder where it is a run."""
    place = None if model in BUILTIN else existing(model, "MODEL")
    if place is not None and os.path.isfile(place / "config.yaml"):
        return located(load_config(place / "config.yaml")), place
    if place is not None and place.is_file() and place.suffix not in (".safetensors", ".ckpt"):  # weights are no configuration
        return located(load_config(place)), None
    return located(TrainConfig(model=ModelSettings(path=model))), None
