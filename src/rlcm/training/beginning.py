"""What a run begins with: its configuration with what was passed as an object named in it, or that of a run to go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError
from rlcm.paths import existing, local
from rlcm.rewards.build import located
from rlcm.rewards.given import Rewards, given
from rlcm.runs.again import going_on, repeated
from rlcm.runs.checkpoint import Checkpoint, newest_checkpoint
from rlcm.runs.rundir import RunDirectory, default_name
from rlcm.runs.weights import listed
from rlcm.training.build import Parts
from rlcm.training.config import TrainConfig
from rlcm.training.pins import TABLES, Pins, changes_of_meaning, changes_of_rounding, class_of, not_comparable, not_compared
from rlcm.training.run_config import run_config


def resolved(
    config: TrainConfig,
    parts: Parts,
    pipeline: Any,
    rewards: Rewards | None,
    prompts: Sequence[str] | None,
) -> TrainConfig:
    """Return the configuration with its name and guidance, and with what was passed as an object in place of what it replaced.

    What cannot be loaded again is named so that a resumed run which lacks the object says so, and takes no other.
    """
    changes: dict[str, Any] = {"sampler": parts.sampler}
    if not config.name:
        changes["name"] = default_name(parts.rewards.parts[0].label)
    if pipeline is not None:
        path = str(getattr(pipeline, "name_or_path", None) or type(pipeline).__name__)
        changes["model"] = config.model.model_copy(update={"path": str(existing(path, "model.path") or path)})
    if prompts is not None:
        changes["prompts"] = parts.prompts.prompts
    if rewards is None:
        changes["rewards"] = list(map(located, config.rewards))
    else:
        changes["rewards"] = [located(one.settings) if one.reward is None else one.settings for one in given(rewards)]
    held_out = tuple(map(located, config.evaluation.held_out))
    changes["evaluation"] = config.evaluation.model_copy(update={"held_out": held_out})
    return config.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run to go on with."""

    run: Path
    checkpoint: Checkpoint | None
    """Its newest whole one; None where it has written none yet."""
    damaged: list[str]
    """What was wrong with newer ones."""
    changes: Sequence[str]
    """Settings that are others from here on, as KEY=VALUE."""
    force: bool
    """Go on although something else than before would be learnt or measured."""

    def compare(self, now: Pins) -> tuple[list[str], list[str]]:
        """Return what changes the meaning of the run, on which the user insists, and notes for the user.

        Raises:
            ConfigError: if something changes its meaning, and the user does not insist.
        """
        if self.checkpoint is None or not (self.checkpoint.round or self.checkpoint.state.get("evaluations")):
            return [], []  # nothing was learnt or measured yet
        before = self.checkpoint.state.get("depends_on")
        if not (isinstance(before, dict) and all(isinstance(before.get(table), dict) for table in TABLES)):
            return [], [
                "this checkpoint is from before rlcm kept what a run depends on: it is not compared with what there is now"
            ]
        changed, rounding = changes_of_meaning(before, now), changes_of_rounding(before, now)
        if changed and not self.force:
            raise ConfigError(
                f"{self.run} cannot go on as it began, because something has changed since round {self.checkpoint.round}: "
                f"{listed(changed, 8)}. What was measured before and after would not belong together. Put it back; or start a new run: "
                f"{repeated(self.run)}; or go on anyway (in Python: force=True): "
                f"{self.insisting}"
            )
        notes = (
            [f"going on, as you insist, with other things than up to round {self.checkpoint.round}: {listed(changed, 8)}"]
            if changed
            else []
        )
        if kept_apart := not_compared(before, now):
            notes.append(f"cannot be compared with what was there before: {listed(kept_apart, 8)}")
        if rounding:
            notes.append(f"other than before, for the last digits only: {listed(rounding, 8)}")
        for key in now.names:
            if not_comparable(before, now, key):  # and the next time, too: what makes it may add to it
                now.contents[key] = now.names[key]
        return changed, notes

    @property
    def insisting(self) -> str:
        """The command that insists."""
        return going_on(self.run, *self.changes, force=True)


def require_free_name(config: TrainConfig) -> None:
    """Do nothing if a new run of this configuration may be put where it says.

    Raises:
        RunDirectoryError: if there is a result of an earlier run of its name.
    """
    if config.name:
        RunDirectory(local(config.output, "output") / config.name).require_no_results()


def stopped_run(run: Path, changes: Sequence[str], *, force: bool = False) -> tuple[TrainConfig, Stopped]:
    """Return the configuration of a run to go on with, and what there is of it.

    Args:
        force: take changes of other settings, too.

    Raises:
        MissingFileError: if the folder holds no run.
        CheckpointError: if there is no whole checkpoint.
        ConfigError: as `run_config`, and if a change is of a setting that means something to what was learnt, and the user does
            not insist.
    """
    config = run_config(run, changes)
    checkpoint, damaged = newest_checkpoint(run)
    stopped = Stopped(run, checkpoint, damaged, changes, force)
    for change in changes:
        setting = change.partition("=")[0]
        own = setting in ("name", "output")
        # Of the rewards all but `on_failure` and time limits is compared later, with what the run began with.
        of_rewards = f"{setting}.".startswith(("rewards.", "evaluation.held_out."))
        may_be_other = class_of(setting) in ("free", "rounding") or of_rewards
        if own or not (force or may_be_other):
            # What a checkpoint holds of a LoRA is of its shape.
            anew = [other for other in changes if other.partition("=")[0] not in ("name", "output")]
            insist = (
                "" if own or setting.startswith("lora.") else f", or go on anyway (in Python: force=True): {stopped.insisting}"
            )
            raise ConfigError(
                f"--resume {change}: a run goes on with its own settings; others can be those of `run`, such as run.rounds=200, but "
                "for run.clock; evaluation.final, every, grid and patience; on_failure and timeout_seconds of a reward; and what "
                "changes rounding only. "
                + ("To have it elsewhere, move its folder. " if setting == "output" else "")
                + "Start a new run: "
                + repeated(run, *anew)
                + insist
            )
    return config, stopped
