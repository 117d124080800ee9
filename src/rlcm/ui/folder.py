"""The folder of runs: which there are, and nothing outside it."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rlcm.errors import MissingFileError, RunDirectoryError, UsageError
from rlcm.paths import command
from rlcm.report import read_run
from rlcm.report.run import STUDY, WEIGHTS, Run
from rlcm.runs.files import below, is_there, printable, stamp, why_no_file
from rlcm.runs.listing import runs_in

PATIENCE = 20
"""A run is read again at the earliest after this many times the seconds that reading it took."""
WATCHED = ("config.yaml", "metrics.jsonl", "eval.json", "samples", WEIGHTS, STUDY)
"""What changes where there is something new to read."""
MANY = 100_000
"""Files of a run."""
OUTSIDE = "it is, or holds, a link to somewhere outside this folder"


@dataclass(slots=True)
class _Read:
    run: Run | RunDirectoryError
    signature: tuple[object, ...]
    again: float
    """Before this moment of the monotonic clock the run is not read again."""


class RunsFolder:
    """The runs that are direct children of a folder; those that lead out of it by links do not exist here.

    Args:
        path: of the folder; one that is not there yet is an empty one.

    Raises:
        UsageError: if the path is a file, or a run itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if is_there(path) and (why := why_no_file(path) or "it is a file") != "it is a folder":
            raise UsageError(
                f"RUNS_DIR={printable(path)!r} {why.removeprefix('it ')}; give the folder that holds the runs, such as `rlcm ui runs`."
            )
        if os.path.isfile(path / "config.yaml"):
            whole = command("rlcm", "ui", path.absolute().parent)
            raise UsageError(f"RUNS_DIR={str(path)!r} is a single run; give the folder that holds it: `{whole}`.")
        self._lock = threading.Lock()
        self._known: dict[str, _Read] = {}

    @property
    def root(self) -> Path:
        """The folder without links."""
        return Path(os.path.realpath(self.path))

    def names(self) -> list[str]:
        """Return the runs' names, the one that changed last first."""
        return self._survey()[0]

    def left_out(self) -> dict[str, str]:
        """Return why runs cannot be shown, by their printable names."""
        return self._survey()[1]

    def run_path(self, name: str) -> Path:
        """Return a run's folder.

        Raises:
            MissingFileError: if the folder has no run of that name.
        """
        # Compared with what is there, never joined to the path: a name from the network is not to be trusted.
        run = next((run for run in runs_in(self.path)[0] if run.name == name), None)
        if run is None or self._why_outside(run):
            raise MissingFileError(f"there is no run {name!r} in {self.path}; choose one of the list.")
        return run

    def file(self, name: str, inside: str) -> Path:
        """Return a file of a run.

        Raises:
            MissingFileError: if there is none, or it is hidden, or lies outside.
        """
        run = self.run_path(name)
        parts = inside.split("/")
        if not any(part.startswith(".") or part == "" or "\\" in part for part in parts):
            found = run.joinpath(*parts)
            if os.path.isfile(found) and _lies_in(found, Path(os.path.realpath(run))):
                return found
        raise MissingFileError(f"the run {name!r} has no file {inside!r}.")

    def read(self, name: str) -> Run:
        """Return what a run holds, from memory where nothing of it has changed.

        Raises:
            MissingFileError: if there is no run of that name.
            RunDirectoryError: if it cannot be read.
        """
        return self._read(name, self.run_path(name))

    def look(self) -> tuple[dict[str, Run], dict[str, str]]:
        """Return the runs that can be read, the one that changed last first, and why others are left out, by name."""
        names, left_out = self._survey()
        found = {}
        for name in names:
            try:
                found[name] = self._read(name, self.path / name)
            except RunDirectoryError as error:
                if is_there(self.path / name):  # it was not deleted a moment ago
                    left_out[name] = str(error)
        return found, left_out

    def _read(self, name: str, path: Path) -> Run:
        signature = tuple(stamp(path / part) for part in WATCHED)
        with self._lock:
            known = self._known.get(name)
            if known is None or (known.signature != signature and time.monotonic() >= known.again):
                started = time.monotonic()
                found = _read_any(path)
                ended = time.monotonic()
                known = self._known[name] = _Read(found, signature, ended + PATIENCE * (ended - started))
        if isinstance(known.run, RunDirectoryError):
            raise known.run
        return known.run

    def _survey(self) -> tuple[list[str], dict[str, str]]:
        runs, left_out = runs_in(self.path)
        names = []
        for run in runs:
            why = self._why_outside(run)
            if why:
                left_out[run.name] = why
            else:
                names.append(run.name)
        return names, left_out

    def _why_outside(self, run: Path) -> str:
        """Return why a run is none of this folder: a link, of the run or in it, leads out; nothing where none does."""
        root = self.root
        if not _lies_in(run, root):
            return OUTSIDE
        for count, entry in enumerate(below(run)):
            if count >= MANY:
                return f"it holds more than {MANY:,} files"
            if entry.is_symlink() and not _lies_in(Path(entry.path), root):
                return OUTSIDE
        return ""


def _read_any(path: Path) -> Run | RunDirectoryError:
    try:
        return read_run(path)
    except RunDirectoryError as error:
        return error
    except Exception as error:  # whatever anybody has written there: one run must not hide the others
        return RunDirectoryError(f"it cannot be read ({type(error).__name__}: {error}).")


def _lies_in(path: Path, folder: Path) -> bool:
    """Return whether a path, without links, is in a folder without links; a link that leads back to itself is where it is."""
    return Path(os.path.realpath(path)).is_relative_to(folder)
