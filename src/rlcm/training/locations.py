"""Where the files of a run are: absolute, so that it can be gone on with, evaluated and drawn with from any folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlcm.paths import existing, local
from rlcm.pipelines.settings import BUILTIN
from rlcm.rewards.build import named
from rlcm.training.config import TrainConfig
from rlcm.training.prompts import BUILT_IN


def located(config: TrainConfig) -> TrainConfig:
    """Return a configuration in which every local file and folder has its absolute path.

    Names of built-in things stay as they are, and so does what is not there: it may be a name on the Hugging Face Hub.
    Nothing is imported; what a reward's arguments name, `rlcm.rewards.build.located` looks up.

    Raises:
        ConfigError: if a setting that names a file is no path.
    """
    model, evaluation = config.model, config.evaluation
    loras = tuple(
        lora.model_copy(update={"path": _place(lora.path, f"model.loras.{number}.path")})
        for number, lora in enumerate(model.loras)
    )
    path = model.path if model.path in BUILTIN else _place(model.path, "model.path")
    looked_at: dict[str, Any] = {
        "prompts": _prompts(evaluation.prompts, "evaluation.prompts"),
        "held_out": tuple(map(named, evaluation.held_out)),
    }
    return config.model_copy(
        update={
            "output": str(local(config.output, "output").absolute()),
            "model": model.model_copy(update={"path": path, "loras": loras}),
            "prompts": _prompts(config.prompts, "prompts"),
            "rewards": list(map(named, config.rewards)),
            "evaluation": evaluation.model_copy(update=looked_at),
        }
    )


def _place(name: str, setting: str) -> str:
    return str(existing(name, setting) or name)


def _prompts(source: str | Sequence[str] | None, setting: str) -> Any:
    return _place(source, setting) if isinstance(source, str) and source not in BUILT_IN else source
