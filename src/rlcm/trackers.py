"""Where metrics go besides metrics.jsonl. A tracker that fails never stops a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes a round's metrics."""

    def log(self, metrics: Mapping[str, float], round_number: int) -> None:
        """Take the metrics of a round."""

    def close(self) -> None:
        """Finish writing."""


class NoTracker:
    """Keeps nothing."""

    def log(self, metrics: Mapping[str, float], round_number: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """Writes TensorBoard event files into the run's folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, metrics: Mapping[str, float], round_number: int) -> None:
        """Write the metrics of a round; a failure is reported in the log."""
        try:
            for key, value in metrics.items():
                self._writer.add_scalar(key, value, round_number)
        except Exception as error:
            logger.warning("tensorboard failed in round %d: %s", round_number, error)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


def make_tracker(name: str, folder: Path) -> Tracker:
    """Return the tracker of that name, or one that keeps nothing if it cannot start."""
    if name == "none":
        return NoTracker()
    try:
        return TensorBoard(folder)
    except Exception as error:
        logger.warning("tensorboard cannot start (%s); metrics go to metrics.jsonl only", error)
        return NoTracker()
