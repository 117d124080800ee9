"""What MODEL on the command line means."""

from __future__ import annotations

from pathlib import Path

from rlcm.pipelines.settings import ModelSettings
from rlcm.training.config import TrainConfig, load_config


def config_of(model: str) -> tuple[TrainConfig, Path | None]:
    """Return the configuration that MODEL on the command line means, and its folder where it is a run."""
    folder = Path(model)
    if (folder / "config.yaml").is_file():
        return load_config(folder / "config.yaml"), folder
    if folder.is_file() and folder.suffix not in (".safetensors", ".ckpt"):  # weights are no configuration
        return load_config(folder), None
    return TrainConfig(model=ModelSettings(path=model)), None
