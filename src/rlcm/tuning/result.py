"""What came of a run: its figures, its pictures, and the tuned pipeline."""

from __future__ import annotations

import functools
import inspect
import io
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from rlcm.errors import ConfigError, RLCMError
from rlcm.paths import given_folder
from rlcm.pipelines.settings import DrawSettings, SamplerSettings
from rlcm.report.picture import before_after_picture
from rlcm.report.reading import read_run
from rlcm.report.run import Run
from rlcm.report.words import headline
from rlcm.rewards.image.pixels import to_uint8
from rlcm.runs.files import is_there
from rlcm.sharing import tuned_pipeline
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.final import OF_RUN, tuned_weights
from rlcm.training.locations import located
from rlcm.training.prompts import load_prompts
from rlcm.training.run_config import run_config
from rlcm.training.usage import call_arguments
from rlcm.training.watch import flat_summary
from rlcm.tuning.drawing import draw_images
from rlcm.tuning.saying import quiet


class Result:
    """A run's folder, read when something of it is asked for.

        result = rlcm.load("runs/demo")
        result.draw("three foxes", n=4)

    Args:
        path: the run's folder.

    Raises:
        MissingFileError: if it holds no run.
        ConfigError: if its configuration is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = given_folder(path).absolute()
        self.config: TrainConfig = located(run_config(self.path))

    @cached_property
    def _run(self) -> Run:
        return read_run(self.path)

    @property
    def before(self) -> dict[str, float]:
        """Means over the fixed prompts and seeds before training: `reward`, `rewards.LABEL`, `judge.QUESTION`, ...; empty where
        nothing was measured."""
        return flat_summary(self._run.evaluations[0]) if self._run.evaluations else {}

    @property
    def after(self) -> dict[str, float]:
        """The same of the weights that are the result; empty where there was no evaluation since the first."""
        return flat_summary(self._run.outcome) if len(self._run.evaluations) > 1 else {}

    @property
    def report(self) -> Path:
        """The run's page, a file for a browser."""
        return self.path / "report.html"

    @property
    def lora(self) -> Path:
        """The file of the tuned LoRA, which diffusers loads.

        Raises:
            MissingFileError: if the run has not ended.
        """
        return tuned_weights(self.path)

    @cached_property
    def pipeline(self) -> Any:
        """The tuned diffusers pipeline. A call of it samples as the run did: steps, guidance and size need not be given.

        Raises:
            MissingFileError: if the run has not ended.
        """
        quiet()
        pipeline = tuned_pipeline(self.config, self.path)
        pipeline.set_progress_bar_config(disable=True)
        setattr(pipeline, OF_RUN, self.path)
        return _as_the_run_samples(pipeline, call_arguments(self.config, type(pipeline).__name__))

    def draw(self, prompts: str | Sequence[str], n: int = 1, *, seed: int = 0, steps: int | None = None) -> list[Image.Image]:
        """Return `n` pictures of each prompt by the tuned model, as the run samples.

        Args:
            prompts: one, or several.
            n: pictures of each.
            seed: of the first picture of each prompt; the next one has the next seed.
            steps: sampling steps, in place of the run's.

        Raises:
            MissingFileError: if the run has not ended.
            ConfigError: if there is no prompt, or a number is out of range or more than memory holds.
        """
        texts = load_prompts([prompts] if isinstance(prompts, str) else prompts).prompts
        asked = parse_settings(DrawSettings, {"seed": seed, "count": n})
        if steps is not None:
            parse_settings(SamplerSettings, {"steps": steps})
        sampler = self.config.sampler.drawing(steps)
        images = draw_images(self.pipeline, self.config.model, sampler, texts, asked.seed, asked.count, "n")
        return [Image.fromarray(level) for level in to_uint8(images)]

    def picture(self, columns: int = 6) -> Image.Image:
        """Return pictures of the same prompts and seeds before and after, with what was measured.

        Args:
            columns: pictures in a row, 1 to 10.

        Raises:
            ConfigError: if `columns` is out of range.
            RunDirectoryError: if the run has not both.
        """
        if isinstance(columns, bool) or not isinstance(columns, int) or not 1 <= columns <= 10:
            raise ConfigError(f"columns={columns!r}: give a whole number from 1 to 10.")
        with tempfile.TemporaryDirectory() as folder:
            file = before_after_picture(self.path, Path(folder) / "picture.png", columns)
            return Image.open(io.BytesIO(file.read_bytes()))

    def __repr__(self) -> str:
        if self._run.evaluations:
            said = "".join(headline(self._run))
        else:
            said = "eval.json has no evaluation that can be read" if is_there(self.path / "eval.json") else "no evaluation yet"
        lora = f"\nLoRA  {self.path / 'final'}" if is_there(self.path / "final") else ""
        return f"{said}\npage  {self.report}{lora}"

    def _repr_png_(self) -> bytes | None:
        """Return before and after for a notebook, where there are pictures of both."""
        try:
            return self.picture()._repr_png_()
        except RLCMError:
            return None


def load(run: Path | str) -> Result:
    """Return what came of a run, by its folder; see `Result`."""
    return Result(run)


def _as_the_run_samples(pipeline: Any, arguments: dict[str, Any]) -> Any:
    """Give the call of a pipeline the run's arguments as defaults; what is passed wins."""
    kind = type(pipeline)
    parameters = inspect.signature(kind.__call__).parameters
    known = {name: value for name, value in arguments.items() if name in parameters}
    order = list(parameters)[1:]

    @functools.wraps(kind.__call__)  # whose signature tells what the pipeline takes
    def call(self: Any, *given: Any, **named: Any) -> Any:
        left = {name: value for name, value in known.items() if name not in order[: len(given)]}
        return kind.__call__(self, *given, **(left | named))

    pipeline.__class__ = type(
        kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
    )
    return pipeline
