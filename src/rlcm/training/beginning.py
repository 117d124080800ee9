"""What a run begins with: its configuration with what was passed as an object named in it, or that of a run to go on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError, MissingFileError
from rlcm.paths import command, existing
from rlcm.pipelines.settings import BUILTIN, BUILTIN_GUIDANCE
from rlcm.rewards import RewardSettings
from rlcm.rewards.build import located
from rlcm.runs.checkpoint import Checkpoint, newest_checkpoint
from rlcm.runs.rundir import default_name
from rlcm.training.build import Parts
from rlcm.training.config import TrainConfig, load_config


def resolved(
    config: TrainConfig,
    parts: Parts,
    pipeline: Any,
    rewards: Sequence[Callable[..., Any]] | None,
    prompts: Sequence[str] | None,
) -> TrainConfig:
    """Return the configuration with its name, and with what was passed as an object in place of what it replaced.

    What cannot be loaded again is named so that a resumed run which lacks the object says so, and takes no other.
    """
    changes: dict[str, Any] = {}
    if not config.name:
        changes["name"] = default_name(parts.rewards.parts[0].label)
    if config.sampler.guidance is None and pipeline is None and config.model.path in BUILTIN:
        changes["sampler"] = config.sampler.model_copy(update={"guidance": BUILTIN_GUIDANCE})
    if pipeline is not None:
        path = str(getattr(pipeline, "name_or_path", None) or type(pipeline).__name__)
        changes["model"] = config.model.model_copy(update={"path": str(existing(path, "model.path") or path)})
    if prompts is not None:
        changes["prompts"] = parts.prompts.prompts
    if rewards is None:
        changes["rewards"] = list(map(located, config.rewards))
    else:
        changes["rewards"] = [RewardSettings(name=_place_of(part.reward), label=part.label) for part in parts.rewards.parts]
    held_out = tuple(map(located, config.evaluation.held_out))
    changes["evaluation"] = config.evaluation.model_copy(update={"held_out": held_out})
    return config.model_copy(update=changes)


def _place_of(reward: Callable[..., Any]) -> str:
    function = getattr(reward, "__qualname__", None)
    return f"{reward.__module__}:{function or type(reward).__qualname__ + '()'}"


def stopped_run(run: Path, changes: Sequence[str]) -> tuple[TrainConfig, Checkpoint | None, list[str]]:
    """Return the configuration of a run to go on with, its newest whole checkpoint, and what was wrong with newer ones.

    Raises:
        MissingFileError: if the folder holds no run.
        CheckpointError: if there is no whole checkpoint.
        ConfigError: if a change is of anything but `run` and evaluation.final.
    """
    if not (run / "config.yaml").is_file():
        raise MissingFileError(
            f"{run} holds no run to go on with; give the folder that `rlcm train` printed, such as runs/NAME."
        )
    config = load_config(run / "config.yaml", changes)
    for change in changes:
        if not change.startswith(("run.", "evaluation.final=")) or change.startswith("run.clock="):
            raise ConfigError(
                f"--resume {change}: a run goes on with its own settings; evaluation.final and those of `run` alone can be "
                "others, such as run.rounds=200, but for run.clock. Start a new run: "
                + command("rlcm", "train", run / "config.yaml", "name=NEW", change)
            )
    return config, *newest_checkpoint(run)
