"""What MODEL on the command line means."""

from __future__ import annotations

from pathlib import Path

from rlcm.errors import MissingFileError
from rlcm.pipelines.settings import ModelSettings
from rlcm.training.config import TrainConfig, load_config

WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf", ".onnx")


def config_of(model: str) -> tuple[TrainConfig, Path | None]:
    """Return the configuration that MODEL on the command line means, and its folder where it is a run.

    Raises:
        MissingFileError: if it is a folder inside a run.
        ConfigError: if it is the file of a configuration that is not one.
    """
    folder = Path(model)
    if (folder / "config.yaml").is_file():
        return load_config(folder / "config.yaml"), folder
    if folder.is_file() and not _is_weights(folder):
        return load_config(folder), None
    parent = folder.resolve().parent
    if folder.is_dir() and not (folder / "model_index.json").is_file() and (parent / "config.yaml").is_file():
        raise MissingFileError(f"{model} is a part of a run, which has the settings of its model; give the run: {parent}")
    return TrainConfig(model=ModelSettings(path=model)), None


def _is_weights(file: Path) -> bool:
    """Return whether a file holds weights, by its name or as a text has no zero bytes: weights are no configuration."""
    if file.suffix.lower() in WEIGHTS:
        return True
    with open(file, "rb") as opened:
        return b"\0" in opened.read(1024)
