"""Where the files of a run are: absolute, so that it can be gone on with, evaluated and drawn with from any folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlcm.paths import existing, local
from rlcm.pipelines.settings import BUILTIN, LoraSettings, ModelSettings
from rlcm.rewards.build import named
from rlcm.training.config import TrainConfig
from rlcm.training.final import WEIGHTS_NAME, require_whole_base, tuned_weights
from rlcm.training.prompts import BUILT_IN
from rlcm.training.run_config import run_config


def located(config: TrainConfig) -> TrainConfig:
    """Return a configuration in which every local file and folder has its absolute path.

    Names of built-in things stay as they are, and so does what is not there: it may be a name on the Hugging Face Hub.
    Nothing is imported; what a reward's arguments name, `rlcm.rewards.build.located` looks up.

    Raises:
        ConfigError: if a setting that names a file is no path.
    """
    model, evaluation = of_run(config.model), config.evaluation
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


def of_run(model: ModelSettings) -> ModelSettings:
    """Return the model of a run with what the run has learnt in it, where `model.path` is the folder of one; else the model as it is.

    Settings of the model that were given win over those of the run.

    Raises:
        MissingFileError: if the run has not ended.
        ConfigError: if its configuration is damaged, or what it was trained on is in no file.
    """
    run = None if model.path in BUILTIN else existing(model.path, "model.path")
    if run is None or not (run / "config.yaml").is_file() or (run / "model_index.json").is_file():
        return model
    require_whole_base(run)
    learnt = LoraSettings(path=str(tuned_weights(run).parent), weight_name=WEIGHTS_NAME)
    base = of_run(run_config(run).model)
    given = {name: getattr(model, name) for name in model.model_fields_set - {"path", "loras"}}
    return base.model_copy(update={**given, "loras": (*base.loras, learnt, *model.loras)})


def _place(name: str, setting: str) -> str:
    return str(existing(name, setting) or name)


def _prompts(source: str | Sequence[str] | None, setting: str) -> Any:
    return _place(source, setting) if isinstance(source, str) and source not in BUILT_IN else source
