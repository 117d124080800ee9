"""The run directory: what a run leaves on disk. The trainer writes it; report and others only read it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rlcm.errors import RunDirectoryError
from rlcm.evaluate import Evaluation
from rlcm.serialization import write_bytes, write_json


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into a RunDirectoryError that says what to do."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {path}: {error.strerror or error}. What was written before is intact; free some space or choose "
            "another folder with output=..., then go on with `rlcm train --resume`."
        ) from error


def default_name(reward: str) -> str:
    """Return a name for a run that gives none: reward, date and time."""
    return f"{reward}-{datetime.now():%Y%m%d-%H%M%S}"


class RunDirectory:
    """A run's folder.

    Raises:
        RunDirectoryError: at any write that the operating system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, output: Path, name: str) -> RunDirectory:
        """Make a new folder for a run.

        Raises:
            RunDirectoryError: if it exists with a run in it, or cannot be made.
        """
        path = output / name
        if (path / "config.yaml").exists():
            raise RunDirectoryError(
                f"name={name!r}: {path} holds a run already. Choose another name=..., go on with that run by "
                f"`rlcm train --resume {path}`, or delete the folder."
            )
        with disk_errors(path):
            (path / "samples").mkdir(parents=True, exist_ok=True)
        return cls(path)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run."""
        with disk_errors(self.path / name):
            write_bytes(self.path / name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run."""
        with disk_errors(self.path / name):
            write_json(self.path / name, value)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Append a round's metrics to metrics.jsonl."""
        line = json.dumps({key: _short(value) for key, value in metrics.items()})
        with disk_errors(self.path / "metrics.jsonl"), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def keep_rounds(self, last: int) -> None:
        """Cut metrics.jsonl back to rounds up to `last`, as a resumed run needs it.

        eval.json stays as it is: the trainer rewrites it at its next evaluation, from its checkpoint's evaluations on.
        """
        metrics = [line for line in self.metrics() if line["round"] <= last]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))

    def metrics(self) -> list[dict[str, float]]:
        """Return the rounds' metrics; a line that was cut off by a crash is left out."""
        file = self.path / "metrics.jsonl"
        rows = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def add_samples(self, round_number: int, evaluation: Evaluation, count: int) -> None:
        """Write the first `count` images of an evaluation as a grid, and beside it what is in its cells."""
        count = min(count, len(evaluation.prompts))
        columns = min(8, math.ceil(math.sqrt(count)))
        images = evaluation.images[:count]
        name = f"samples/round-{round_number:06d}"
        with disk_errors(self.path / f"{name}.png"):
            grid(images, columns).save(self.path / f"{name}.png")
        described = {
            "round": round_number,
            "columns": columns,
            "cell": list(images.shape[2:]),
            "prompts": evaluation.prompts[:count],
            "seeds": evaluation.seeds[:count],
            "rewards": {label: [_short(v) for v in values[:count].tolist()] for label, values in evaluation.rewards.items()},
        }
        if evaluation.judge:
            described["judge"] = {key: value[:count].tolist() for key, value in evaluation.judge.items()}
        self.write_json(f"{name}.json", described)


def grid(images: Tensor, columns: int) -> Image.Image:
    """Return images [B, 3, h, w] in [0, 1] as one picture, row by row without gaps; empty cells are white."""
    size, _, height, width = images.shape
    rows = math.ceil(size / columns)
    canvas = torch.ones(rows * columns, 3, height, width)
    canvas[:size] = images
    sheet = canvas.view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    return Image.fromarray((sheet * 255).round().to(torch.uint8).numpy().astype(np.uint8))


def _short(value: float) -> float:
    """Return a number with seven significant digits, so that the files stay readable."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
