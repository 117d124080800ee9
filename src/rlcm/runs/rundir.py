"""The run directory: what a run leaves on disk. The trainer writes it; report and others only read it."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import BaseFileLock
from PIL import Image
from torch import Tensor

from rlcm.errors import RunDirectoryError, UnreadableFileError
from rlcm.runs.again import going_on
from rlcm.runs.files import is_there, open_file
from rlcm.runs.locks import is_held, take_lock
from rlcm.runs.metrics import Damage, read_metrics, rows
from rlcm.runs.refusals import run_errors
from rlcm.runs.serialization import write_bytes, write_json
from rlcm.types import Drawn

_OF_NOTHING = re.compile(r"checkpoint-0+")
EXTREMES = 64
"""Prompts whose best, median and worst image are kept."""
THUMBNAIL = 192
"""Longest side of such an image, in pixels."""
_ROUND = re.compile(r"round-([0-9]{1,15})")


def default_name(reward: str) -> str:
    """Return a name for a run that gives none: reward, date and time; of the reward what a name may hold."""
    words = re.sub(r"[^\w.-]+", "-", reward).strip("-.")[:60] or "run"
    return f"{words}-{datetime.now():%Y%m%d-%H%M%S}"


class RunDirectory:
    """A run's folder.

    Raises:
        RunDirectoryError: at any write that the operating system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, output: Path, name: str, config: str | None = None) -> RunDirectory:
        """Make a folder for a new run, or take over that of one which has learnt nothing; files that no run writes stay.

        Args:
            config: the text of its config.yaml. Another one that lies there is kept beside it: a person may have written it.

        Raises:
            RunDirectoryError: if there is a result in it (see `has_results`), if another process is at it, or if it cannot be made.
        """
        run = cls(output / name)
        run.require_no_results()
        run.make_folders()
        lock = run.hold()
        try:
            run._clear(config)
            if config is not None:
                run.write_text("config.yaml", config)
        finally:
            lock.release()
        return run

    @property
    def has_results(self) -> bool:
        """Whether a run has learnt anything here: a round in metrics.jsonl, a checkpoint later than round 0, or `final/`.

        The evaluation of the base model is no result: the same command makes it again.
        """
        metrics = self.path / "metrics.jsonl"
        if os.path.lexists(metrics) and not (metrics.is_file() and metrics.stat().st_size == 0):
            return True
        later = [path for path in self.path.glob("checkpoint-*") if not _OF_NOTHING.fullmatch(path.name)]
        return bool(later) or any((self.path / "final").glob("*"))

    def require_no_results(self) -> None:
        """Do nothing if a new run may be put here.

        Raises:
            RunDirectoryError: if there is a result of an earlier one.
        """
        if self.has_results:
            if is_held(self.path):
                raise RunDirectoryError(
                    f"name={self.path.name!r}: {self.path} is being trained by another process. Choose another name=..., or wait until "
                    "that has ended."
                )
            raise RunDirectoryError(
                f"name={self.path.name!r}: {self.path} already holds a run. Choose another name=..., continue that run with "
                f"`{going_on(self.path)}`, or delete the folder."
            )

    def require_round(self, number: int) -> None:
        """Do nothing if the run is where a trainer left it, after round `number`.

        Raises:
            RunDirectoryError: if it has metrics of later rounds.
        """
        if later := [row["round"] for row in self.metrics() if row["round"] > number]:
            raise RunDirectoryError(
                f"{self.path}: another trainer has taken the run to round {max(later)} since this one was made, after round {number}. "
                f"Make a new one by Trainer.resume({str(self.path)!r})."
            )

    def _clear(self, config: str | None) -> None:
        """Take away what a run leaves that has learnt nothing."""
        with run_errors(self.path):
            written = self.path / "config.yaml"
            if config is not None and written.is_file() and written.read_bytes() != config.encode():
                number = 1
                while (kept := self.path / f"config.before-{number}.yaml").exists():
                    number += 1
                written.rename(kept)
            samples = self.path / "samples"
            for file in (self.path / "eval.json", *samples.glob("round-000000.*"), *samples.glob("prompts.*")):
                file.unlink(missing_ok=True)
            for file in (self.path / "best").glob("*.safetensors"):
                file.unlink()
            for folder in self.path.glob("checkpoint-*"):
                shutil.rmtree(folder)

    def hold(self) -> BaseFileLock:
        """Return a hold on the run, which one process at a time can have; it lets go on `release`, and with the process.

        Raises:
            RunDirectoryError: if another process has it.
        """
        lock = take_lock(self.path / ".lock")
        if lock is None:
            raise RunDirectoryError(
                f"{self.path} is being trained by another process; wait until it has ended, or stop it there with Ctrl-C."
            )
        return lock

    def make_folders(self) -> None:
        """Make what folders of the run are not there yet."""
        with run_errors(self.path):
            (self.path / "samples").mkdir(parents=True, exist_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run."""
        with run_errors(self.path / name):
            write_bytes(self.path / name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run."""
        with run_errors(self.path / name):
            write_json(self.path / name, value)

    def remove(self, name: str) -> None:
        """Delete a file of the run, if it is there."""
        with run_errors(self.path / name):
            (self.path / name).unlink(missing_ok=True)

    def _write_picture(self, name: str, picture: Image.Image) -> None:
        data = io.BytesIO()
        picture.save(data, format="png")
        with run_errors(self.path / name):
            write_bytes(self.path / name, data.getvalue())

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Append a round's metrics to metrics.jsonl, and see to it that they are on disk before any checkpoint of the round."""
        line = json.dumps({key: _short(value) for key, value in metrics.items()})
        with run_errors(self.path / "metrics.jsonl"), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_rounds(self, last: int) -> list[str]:
        """Cut metrics, evaluations and sample pictures back to rounds up to `last`, as a resumed run needs it.

        Returns:
            what could not be read and is left out, in words.
        """
        file, partial, damage = self.path / "metrics.jsonl", self.path / ".metrics.jsonl.partial", Damage()
        if is_there(file):
            with run_errors(file):
                partial.unlink(missing_ok=True)
            with run_errors(file), self._metrics_file(file) as old, open(partial, "xb") as new:
                for line, row in rows(old, damage):
                    if row["round"] <= last:
                        new.write(line.rstrip(b"\r\n") + b"\n")
                new.flush()
                os.fsync(new.fileno())
            with run_errors(file):
                os.replace(partial, file)
        with run_errors(self.path / "samples"):
            for picture in (self.path / "samples").glob("round-*.*"):
                number = _ROUND.fullmatch(picture.stem)
                if number and int(number[1]) > last and not picture.is_dir():
                    picture.unlink()
        return [str(damage)] if damage.count else []

    @staticmethod
    def _metrics_file(file: Path) -> BinaryIO:
        try:
            return open_file(file)
        except UnreadableFileError as error:
            raise RunDirectoryError(
                f"{file}, where the rounds' metrics belong, cannot be read: {error.reason}. Move it away, then go on with the run; "
                "its checkpoints are as they were."
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rounds' metrics; lines that cannot be read are left out."""
        return read_metrics(self.path / "metrics.jsonl")[0]

    def add_samples(self, round_number: int, evaluation: Drawn, count: int) -> None:
        """Write the first `count` images of an evaluation as a grid, and beside it what is in its cells."""
        count = min(count, len(evaluation.prompts))
        columns = min(8, math.ceil(math.sqrt(count)))
        images = evaluation.images[:count]
        name = f"samples/round-{round_number:06d}"
        self._write_picture(f"{name}.png", grid(images, columns))
        described = {
            "round": round_number,
            "columns": columns,
            "cell": list(images.shape[2:]),
            "prompts": evaluation.prompts[:count],
            "seeds": evaluation.seeds[:count],
            "rewards": {label: [_known(v) for v in values[:count].tolist()] for label, values in evaluation.rewards.items()},
        }
        if evaluation.judge:
            described["judge"] = {key: _answers(value[:count]) for key, value in evaluation.judge.items()}
        self.write_json(f"{name}.json", described)
        self.add_extremes("samples/prompts", round_number, evaluation, evaluation.rewards["total"])

    def add_extremes(
        self,
        name: str,
        round_number: int,
        drawn: Drawn,
        rewards: Tensor,
        by: str = "total",
        display: Mapping[str, str] | None = None,
    ) -> None:
        """Write the best, the median and the worst image of every prompt, a prompt a row, in place of what was there.

        Prompts with fewer than three scored images are left out; without any other nothing is written.

        Args:
            name: of the picture and of the description beside it, inside the run.
            rewards: [B] what they are ordered by.
            by: the label of the reward that this is, or `total` for the sum of all.
            display: how that reward is shown to people, where it says so.
        """
        rows = extremes(drawn.prompts, rewards)[:EXTREMES]
        if not rows:
            return
        index = [i for row in rows for i in row]
        images = _at_most(drawn.images[index], THUMBNAIL)
        self._write_picture(f"{name}.png", grid(images, 3))
        described = {
            "round": round_number,
            "ordered_by": by,
            "display": None if display is None else dict(display),
            "columns": 3,
            "cell": list(images.shape[2:]),
            "prompts": [drawn.prompts[i] for i in index],
            "seeds": [drawn.seeds[i] for i in index],
            "rewards": {label: [_known(values[i].item()) for i in index] for label, values in drawn.rewards.items()},
            "judge": {question: _answers(right[index]) for question, right in (drawn.judge or {}).items()},
        }
        self.write_json(f"{name}.json", described)


def _answers(values: Tensor) -> list[bool | None]:
    """Return a judge's answers [N] for JSON; None where the question was not asked."""
    return [None if math.isnan(value) else bool(value) for value in values.tolist()]


def extremes(prompts: Sequence[str], rewards: Tensor) -> list[tuple[int, int, int]]:
    """Return the indices of the best, the median and the worst image of every prompt that has three or more.

    Args:
        prompts: B.
        rewards: [B], higher is better; NaN counts as no image.
    """
    images: dict[str, list[int]] = {}
    for i, (prompt, value) in enumerate(zip(prompts, rewards.tolist(), strict=True)):
        if not math.isnan(value):
            images.setdefault(prompt, []).append(i)
    ordered = [sorted(own, key=lambda i: -rewards[i].item()) for own in images.values() if len(own) >= 3]
    return [(own[0], own[len(own) // 2], own[-1]) for own in ordered]


def grid(images: Tensor, columns: int) -> Image.Image:
    """Return images [B, 3, h, w] in [0, 1] as one picture, row by row without gaps; empty cells are white."""
    size, _, height, width = images.shape
    rows = math.ceil(size / columns)
    canvas = torch.ones(rows * columns, 3, height, width)
    canvas[:size] = images
    sheet = canvas.view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    return Image.fromarray((sheet * 255).round().to(torch.uint8).numpy().astype(np.uint8))


def _at_most(images: Tensor, side: int) -> Tensor:
    """Return images whose longer side is at most `side` pixels."""
    longest = max(images.shape[2:])
    if longest <= side:
        return images
    size = [max(1, round(length * side / longest)) for length in images.shape[2:]]
    return torch.nn.functional.interpolate(images, size=size, mode="area")


def _short(value: float) -> float:
    """Return a number with seven significant digits, so that the files stay readable."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _known(value: float) -> float | None:
    """Return what `_short` does; None for what a reward could not score, as JSON has no NaN."""
    return _short(value) if math.isfinite(value) else None
