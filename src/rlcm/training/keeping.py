"""What is kept of a run in its folder: evaluations and the best weights so far, checkpoints, and in the end the result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcm.errors import PreflightError, RunDirectoryError
from rlcm.paths import shown
from rlcm.pipelines.noted import pieces_of
from rlcm.processes.distributed import World
from rlcm.report import write_report
from rlcm.report.reading import final_round as round_in_final
from rlcm.report.run import DEPENDS_ON
from rlcm.runs.again import going_on
from rlcm.runs.checkpoint import save_checkpoint
from rlcm.runs.rundir import RunDirectory
from rlcm.training.build import Parts
from rlcm.training.config import TrainConfig
from rlcm.training.final import WEIGHTS_NAME, save_best, save_final
from rlcm.training.usage import local_usage
from rlcm.types import Drawn


class Keeper:
    """Writes what a run leaves in its folder, on process 0 alone; all processes call it together.

    Args:
        parts: what the run is made of.
        config: of the run, resolved.
        world: the processes that share the work.
        note: takes a line for the user.
    """

    def __init__(self, parts: Parts, config: TrainConfig, world: World, note: Callable[[str], None]) -> None:
        self.parts, self.config, self.world, self._note = parts, config, world, note
        self.directory: RunDirectory | None = None
        self._round_in_final: int | None = None  # the round whose weights final/ has; those of an earlier end until the next

    def begin(self) -> RunDirectory:
        """Make the folder of a new run and return it.

        Raises:
            RunDirectoryError: if it holds a run that has learnt something, or cannot be made.
        """
        with self.world.together():
            if self.world.is_main:
                RunDirectory.create(Path(self.config.output), self.config.name, self.config.dump())
        folder = Path(self.config.output) / self.config.name
        again = going_on(folder)
        for text in (f"in {shown(folder)}; after an interruption, go on with: {again}", *self.parts.notes):
            self._note(text)
        self.directory = RunDirectory(folder)
        return self.directory

    def take_up(self, run: Path, last: int, evaluations: Sequence[dict[str, Any]], *, changed: bool) -> None:
        """Go on with the folder of a run, cut back to what was known after round `last`.

        Args:
            changed: whether its configuration is another one from here on.

        Raises:
            RunDirectoryError: if another process is training it.
        """
        directory = self.directory = RunDirectory(run)
        with self.world.together():
            if self.world.is_main:
                directory.hold().release()  # for all that follows: refused while another process trains it
                directory.make_folders()
                if changed:
                    directory.write_text("config.yaml", self.config.dump())
                for text in directory.keep_rounds(last):
                    self._note(f"left out: {text}")
                if (run / "final" / WEIGHTS_NAME).is_file():
                    self._round_in_final = round_in_final(run)
                if evaluations:
                    self._write_evaluations(directory, evaluations)
                else:
                    directory.remove("eval.json")

    def depends_on(self, pins: Mapping[str, Any], altered: Sequence[Mapping[str, Any]]) -> None:
        """Write what the run depends on, and after which rounds it went on with something else."""
        with self.world.together():
            if self.world.is_main and self.directory is not None:
                pieces = {}
                if not str(pins["contents"].get("model.path")).startswith(
                    "loaded "
                ):  # it was named, and not passed as an object
                    with contextlib.suppress(OSError):  # without them less is compared later on
                        pieces = pieces_of(self.config.model)
                self.directory.write_json(DEPENDS_ON, {**pins, "altered": altered, "pieces": pieces})

    def evaluation(self, drawn: Drawn, number: int, evaluations: Sequence[dict[str, Any]], *, is_best: bool) -> None:
        """Keep the pictures of an evaluation after round `number`, the figures of all so far, and the weights if they are best."""
        with self.world.together():
            if self.world.is_main and self.directory is not None:
                self.directory.add_samples(number, drawn, self.config.evaluation.grid)
                self._write_evaluations(self.directory, evaluations)
                if is_best:
                    save_best(self.parts.policy, self.directory)

    def checkpoint(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write a checkpoint of a state, which is asked for where it is written."""
        with self.world.together():
            if self.world.is_main and self.directory is not None:
                found = state()
                save_checkpoint(self.directory.path, found["round"], found, self.config.run.keep_last)

    def whole_rounds(self, directory: RunDirectory, error: Exception, state: Callable[[], dict[str, Any]]) -> None:
        """Write a checkpoint of the last whole round, before an error ends the run."""
        if isinstance(error, (PreflightError, RunDirectoryError)):  # nothing was learnt yet, or nothing can be written
            return
        if self.world.is_main:
            found = state()
            try:
                save_checkpoint(directory.path, found["round"], found, self.config.run.keep_last)
                again = going_on(directory.path)
                self._note(f"kept everything up to round {found['round']}; go on with: {again}")
            except RunDirectoryError as refused:
                self._note(str(refused))
        if self.world.is_shared(error):
            self.world.barrier()  # the first process to end takes the others with it

    def in_haste(self, directory: RunDirectory, state: dict[str, Any], metrics: dict[str, float]) -> None:
        """Write a checkpoint of the last whole round on the first process, before a second interrupt ends it.

        Unlike the rest, this asks the other processes nothing: one of them may be what hangs.
        """
        number = state["round"]
        try:
            if metrics and all(row["round"] != number for row in directory.metrics()):
                directory.add_metrics(metrics)
            save_checkpoint(directory.path, number, state, self.config.run.keep_last)
        except (RunDirectoryError, OSError) as refused:
            self._note(str(refused))
        else:
            again = going_on(directory.path)
            self._note(f"kept everything up to round {number}; go on with: {again}")

    def result(
        self,
        directory: RunDirectory,
        number: int,
        evaluations: Sequence[dict[str, Any]],
        altered: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write the result, which has the weights of round `number`, and the report."""
        with self.world.together():
            if self.world.is_main:
                code = local_usage(self.config, type(getattr(self.parts.policy.denoiser, "pipeline", None)).__name__)
                save_final(self.parts.policy, self.config, up_to(number, evaluations), directory, code, altered)
                self._round_in_final = number
                self._write_evaluations(directory, evaluations)
                write_report(directory.path)

    def _write_evaluations(self, directory: RunDirectory, evaluations: Sequence[dict[str, Any]]) -> None:
        ended = {} if self._round_in_final is None else {"final_round": self._round_in_final}
        found = {"primary_metric": self.parts.rewards.primary_metric, "evaluations": evaluations}
        directory.write_json("eval.json", found | ended)


def up_to(number: int, evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations from the base model's to that of round `number`."""
    return [found for found in evaluations if found["round"] <= number]
