"""Grids of pictures of the fixed prompts and seeds, and single pictures of them with their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from rlcm.errors import RunDirectoryError
from rlcm.runs.files import open_file


@dataclass(slots=True)
class Samples:
    """A grid of pictures of the fixed prompts and seeds, taken at one round."""

    file: Path
    round: int
    columns: int
    cell: tuple[int, int]
    prompts: list[str]
    seeds: list[Any]
    rewards: dict[str, Any]
    judge: dict[str, Any]
    ordered_by: str | None = None
    """Of the best, median and worst pictures: the label of the reward that says so, `total` for the sum; None: not known."""
    display: dict[str, Any] = field(default_factory=dict)
    """How that reward is shown to people, where it says so."""

    @property
    def keys(self) -> list[tuple[str, str]]:
        """What makes pictures of two grids the same: prompt and seed of every cell."""
        return list(zip(self.prompts, map(str, self.seeds), strict=True))

    def crop(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return the pictures of some cells.

        Raises:
            RunDirectoryError: if their file is damaged.
        """
        height, width = self.cell
        try:
            with open_file(self.file) as opened, Image.open(opened, formats=("PNG",)) as picture:
                sheet = picture.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RunDirectoryError(
                f"{self.file} cannot be read ({error}); move it and its description, {self.file.stem}.json, out of the run."
            ) from error
        corners = [(i % self.columns * width, i // self.columns * height) for i in indices]
        return [sheet.crop((x, y, x + width, y + height)) for x, y in corners]

    def verdicts(self, index: int) -> list[tuple[str, bool]]:
        """Return what the judge said of a picture, by question."""
        given = {q: v[index] for q, v in self.judge.items() if isinstance(v, list) and index < len(v) and v[index] is not None}
        # That all is right says as much as that all of its kind is.
        return [(str(q), bool(v)) for q, v in given.items() if q == "right" or "right" not in given]


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture with its number."""

    picture: Image.Image
    value: float | None
    verdicts: list[tuple[str, bool]]
    round: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt and seed before and after."""

    prompt: str
    before: Shot
    after: Shot
