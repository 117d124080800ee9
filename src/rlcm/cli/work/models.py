"""What MODEL on the command line means."""

from __future__ import annotations

import os
from pathlib import Path

from rlcm.errors import MissingFileError
from rlcm.paths import existing
from rlcm.pipelines.settings import BUILTIN, ModelSettings
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.locations import located
from rlcm.training.run_config import run_config

WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf", ".onnx")


def config_of(model: str) -> tuple[TrainConfig, Path | None]:
    """Return the configuration that MODEL on the command line means, and its folder where it is a run.

    Raises:
        MissingFileError: if it is a folder inside a run.
        ConfigError: if it is the file of a configuration that is not one, or a run whose configuration is damaged.
    """
    place = None if model in BUILTIN else existing(model, "MODEL")
    if place is not None and os.path.isfile(place / "config.yaml"):
        return located(run_config(place)), place
    if place is not None and not place.is_dir() and (not place.is_file() or not _is_weights(place)):
        return located(load_config(place)), None
    if place is not None and place.is_dir() and not (place / "model_index.json").is_file():
        parent = place.resolve().parent
        if (parent / "config.yaml").is_file():
            raise MissingFileError(f"{model} is a part of a run, which has the settings of its model; give the run: {parent}")
    return located(TrainConfig(model=ModelSettings(path=model))), None


def _is_weights(file: Path) -> bool:
    """Return whether a file holds weights, by its name or as a text has no zero bytes: weights are no configuration."""
    if file.suffix.lower() in WEIGHTS:
        return True
    with open(file, "rb") as opened:
        return b"\0" in opened.read(1024)
