"""The folder of runs: which there are, and nothing outside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlcm.errors import MissingFileError, RunDirectoryError, UsageError
from rlcm.paths import command
from rlcm.report import read_run
from rlcm.report.run import STUDY, WEIGHTS, Run

PATIENCE = 20
"""A run is read again at the earliest after this many times the seconds that reading it took."""
WATCHED = ("config.yaml", "metrics.jsonl", "eval.json", "samples", WEIGHTS, STUDY)
"""What changes where there is something new to read."""


@dataclass(slots=True)
class _Read:
    run: Run
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
        if path.exists() and not path.is_dir():
            raise UsageError(f"RUNS_DIR={str(path)!r} is a file; give the folder that holds the runs, such as `rlcm ui runs`.")
        if (path / "config.yaml").is_file():
            whole = command("rlcm", "ui", path.absolute().parent)
            raise UsageError(f"RUNS_DIR={str(path)!r} is a single run; give the folder that holds it: `{whole}`.")
        self._lock = threading.Lock()
        self._known: dict[str, _Read] = {}

    @property
    def root(self) -> Path:
        """The folder without links."""
        return self.path.resolve()

    def names(self) -> list[str]:
        """Return the runs' names, the one that changed last first."""
        found = [(_changed(entry), entry.name) for entry in self._folders() if self._keeps_inside(entry)]
        return [name for _, name in sorted(found, reverse=True)]

    def left_out(self) -> list[str]:
        """Return the names of runs that hold links to somewhere outside, and are therefore not shown."""
        return sorted(entry.name for entry in self._folders() if not self._keeps_inside(entry))

    def run_path(self, name: str) -> Path:
        """Return a run's folder.

        Raises:
            MissingFileError: if the folder has no run of that name.
        """
        # Compared with what is there, never joined to the path: a name from the network is not to be trusted.
        entry = next((entry for entry in self._folders() if entry.name == name), None)
        if entry is None or not self._keeps_inside(entry):
            raise MissingFileError(f"there is no run {name!r} in {self.path}; choose one of the list.")
        return self.path / entry.name

    def file(self, name: str, inside: str) -> Path:
        """Return a file of a run.

        Raises:
            MissingFileError: if there is none, or it is hidden, or lies outside.
        """
        run = self.run_path(name)
        parts = inside.split("/")
        if "\0" not in inside and not any(part.startswith(".") or part == "" or "\\" in part for part in parts):
            found = run.joinpath(*parts)
            if found.is_file() and found.resolve().is_relative_to(run.resolve()):
                return found
        raise MissingFileError(f"the run {name!r} has no file {inside!r}.")

    def read(self, name: str) -> Run:
        """Return what a run holds, from memory where nothing of it has changed.

        Raises:
            MissingFileError: if there is no run of that name.
            RunDirectoryError: if it cannot be read.
        """
        path = self.run_path(name)
        signature = tuple(_stamp(path / part) for part in WATCHED)
        with self._lock:
            known = self._known.get(name)
            if known is not None and (known.signature == signature or time.monotonic() < known.again):
                return known.run
            started = time.monotonic()
            run = read_run(path)
            ended = time.monotonic()
            self._known[name] = _Read(run, signature, ended + PATIENCE * (ended - started))
            return run

    def readable(self) -> Iterator[tuple[str, Run]]:
        """Yield the runs that can be read, with their names; the one that changed last first."""
        for name in self.names():
            try:
                yield name, self.read(name)
            except (MissingFileError, RunDirectoryError):  # it was deleted a moment ago
                continue

    def _folders(self) -> list[Path]:
        try:
            entries = sorted(self.path.iterdir())
            return [entry for entry in entries if not entry.name.startswith(".") and _is_run(entry)]
        except OSError:
            return []

    def _keeps_inside(self, run: Path) -> bool:
        """Return whether no link, of the run or in it, leads out of the folder."""
        root = self.root
        if not run.resolve().is_relative_to(root):
            return False
        for folder, folders, files in os.walk(run):
            for entry in (*folders, *files):
                place = os.path.join(folder, entry)
                if os.path.islink(place) and not Path(place).resolve().is_relative_to(root):
                    return False
        return True


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "metrics.jsonl").is_file()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _changed(run: Path) -> int:
    """Return when a run got its last round, in nanoseconds; before the first one, when it was made."""
    stamps = [_stamp(run / part) for part in ("metrics.jsonl", "config.yaml")]
    return next((stamp[0] for stamp in stamps if stamp), 0)
