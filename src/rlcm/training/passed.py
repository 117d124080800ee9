"""What is passed to a trainer in place of settings: objects, names and paths, told apart before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from rlcm.errors import ConfigError
from rlcm.pipelines.precision import resolve
from rlcm.rewards.given import Rewards, given
from rlcm.training.config import TrainConfig, checked
from rlcm.training.final import OF_RUN


def passed(config: TrainConfig | None, model: Any, rewards: Rewards | None) -> tuple[TrainConfig, Any, Rewards | None]:
    """Return the configuration with all that a name or a path says, and what is left as objects: a pipeline, and rewards.

    Args:
        config: left out, the defaults.
        model: a loaded diffusers pipeline, a result's, a path, or None for the configuration's.
        rewards: functions, names and mixes of both, or None for the configuration's.

    Raises:
        ConfigError: if one of them is something else.
    """
    config = TrainConfig() if config is None else checked(config)
    model = getattr(model, OF_RUN, model)  # a result's pipeline stays as it is, and its run can be found again
    if isinstance(model, (str, Path)):
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(model)})})
        model = None
    elif model is not None and not hasattr(model, "components"):
        raise ConfigError(
            f"model={model!r} is a {type(model).__name__}; give a loaded diffusers pipeline, a folder, an id of the Hugging Face "
            "Hub, or the folder of a run."
        )
    if rewards is not None:
        found = given(rewards)
        named = all(one.reward is None for one in found)
        config = config.model_copy(update={"rewards": [one.settings for one in found]}) if named else config
        rewards = None if named else cast(Rewards, found)
    return config, model, rewards


def require_watcher(watcher: Any) -> None:
    """Do nothing if it can be told of a training, or there is none.

    Raises:
        ConfigError: if it has not the methods of a `rlcm.training.trainer.Watcher`.
    """
    methods = (getattr(watcher, name, None) for name in ("note", "round"))
    if watcher is not None and (isinstance(watcher, type) or not all(map(callable, methods))):
        raise ConfigError(
            f"watcher={watcher!r} is not an object with the methods `note` and `round`. A function of the metrics can be the "
            "callback of rlcm.train(callback=...)."
        )


def require_clock(config: TrainConfig, pipeline: Any, processes: int) -> None:
    """Do nothing if the run's clock can count its time.

    Raises:
        ConfigError: if it cannot: that of one process on the CPU sees no GPU and no other process.
    """
    if config.run.clock != "cpu":
        return
    device = resolve(config.model)[0] if pipeline is None else pipeline.device
    if processes > 1 or device.type != "cpu":
        raise ConfigError(
            "run.clock=cpu counts the computing time of one process on the CPU: it cannot see a GPU or other processes; "
            "leave run.clock at wall, or use model.device=cpu and one process."
        )
