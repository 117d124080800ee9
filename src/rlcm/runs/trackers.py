"""Where metrics go besides metrics.jsonl. A tracker that fails never stops a run."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlcm.errors import ConfigError
from rlcm.extras import to_install

logger = logging.getLogger(__name__)

TrackerName = Literal["tensorboard", "wandb", "trackio", "swanlab", "none"]

_MODULES = {
    "tensorboard": "torch.utils.tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "swanlab": "swanlab",
}


@dataclass(frozen=True)
class TrackedRun:
    """What trackers are told of a run before its first metrics."""

    folder: Path
    name: str
    project: str
    config: Mapping[str, Any]
    """The resolved configuration, as JSON values."""
    first_round: int
    """The first round that this process will log; above 1 in a resumed run."""

    @property
    def id(self) -> str:
        """A name that a resumed run has again, and no other run has."""
        return hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:21]  # older SwanLab takes no other length


class Tracker:
    """Takes a round's metrics, and says once where that failed; a tracker that failed is left alone from then on.

    Args:
        name: of the tracker, for its warnings.
        log: takes metrics and the round's number.
        close: finishes writing.
    """

    def __init__(
        self, name: str, log: Callable[[dict[str, float], int], Any] | None = None, close: Callable[[], Any] | None = None
    ) -> None:
        self.name, self._log, self._close = name, log, close

    def log(self, metrics: Mapping[str, float], round_number: int) -> None:
        """Take the metrics of a round."""
        if self._log is not None:
            self._attempt(lambda log: log(dict(metrics), round_number), self._log, f"in round {round_number}")

    def close(self) -> None:
        """Finish writing."""
        if self._close is not None:
            self._attempt(lambda close: close(), self._close, "at its end")

    def _attempt(self, call: Callable[[Any], Any], function: Callable[..., Any], when: str) -> None:
        try:
            call(function)
        # Whatever a tracker raises, its own classes and those of its network client included.
        except Exception as error:
            logger.warning("%s failed %s (%s); from here on metrics go to metrics.jsonl only", self.name, when, error)
            self._log = self._close = None


def require_tracker(name: TrackerName) -> None:
    """Do nothing if the tracker's package is installed.

    Raises:
        ConfigError: if it is not; the text names the extra that brings it.
    """
    if name == "none":
        return
    package = "tensorboard" if name == "tensorboard" else _MODULES[name]
    try:
        found = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        command = "pip install tensorboard" if name == "tensorboard" else to_install(name)
        raise ConfigError(f"run.tracker={name} needs a package that is not installed: {command}, or use run.tracker=none.")


def make_tracker(name: TrackerName, run: TrackedRun) -> Tracker:
    """Return the tracker of that name, begun, or one that keeps nothing if it cannot begin."""
    if name == "none":
        return Tracker(name)
    try:
        return _STARTS[name](importlib.import_module(_MODULES[name]), run)
    except Exception as error:
        logger.warning("%s cannot start (%s); metrics go to metrics.jsonl only", name, error)
        return Tracker(name)


def _tensorboard(module: Any, run: TrackedRun) -> Tracker:
    # Later rounds that an earlier process logged before it was killed are taken back.
    writer = module.SummaryWriter(str(run.folder), purge_step=run.first_round if run.first_round > 1 else None)

    def log(metrics: dict[str, float], round_number: int) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, round_number)

    return Tracker("tensorboard", log, writer.close)


def _wandb(module: Any, run: TrackedRun) -> Tracker:
    begun = module.init(
        project=run.project, name=run.name, id=run.id, resume="allow", dir=str(run.folder), config=dict(run.config)
    )
    return Tracker("wandb", lambda metrics, number: begun.log(metrics, step=number), begun.finish)


def _trackio(module: Any, run: TrackedRun) -> Tracker:
    module.init(project=run.project, name=f"{run.name}-{run.id[:6]}", resume="allow", config=dict(run.config))
    return Tracker("trackio", lambda metrics, number: module.log(metrics, step=number), module.finish)


def _swanlab(module: Any, run: TrackedRun) -> Tracker:
    logs = run.folder / "swanlab"
    logs.mkdir(exist_ok=True)
    module.init(
        project=run.project,
        experiment_name=run.name,
        id=run.id,
        resume="allow",
        logdir=str(logs),
        config=dict(run.config),
    )
    return Tracker("swanlab", lambda metrics, number: module.log(metrics, step=number), module.finish)


_STARTS: dict[str, Callable[[Any, TrackedRun], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "swanlab": _swanlab,
}
