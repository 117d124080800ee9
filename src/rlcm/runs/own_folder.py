"""Folders of fixed names that a command writes: never into a run, never over what the command did not write itself."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlcm.errors import UnreadableFileError, UsageError
from rlcm.runs import digests
from rlcm.runs.files import read_json
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_json

MARK = ".rlcm-wrote.json"
"""In such a folder: which command wrote which files, with their digests."""
_LEFT_BY_RUNS = ("metrics.jsonl", "depends_on.json", "checkpoint-*", "final/*.safetensors", "samples/round-*.json")
_OF_RUNS = ("final", "best", "samples")


class OwnFolder:
    """A folder into which a command writes files of fixed names.

    Args:
        folder: where they go.
        command: who writes them, such as `rlcm push`.
        names: of all files that it may write or delete there, as glob patterns relative to the folder.
        recognised: tells by what lies there that an earlier version of the command wrote it, which left no mark.
        option: by which the folder is named, for the error.
    """

    def __init__(
        self,
        folder: Path,
        command: str,
        names: Sequence[str],
        recognised: Callable[[Path], bool] = lambda folder: False,
        option: str = "-o ",
    ) -> None:
        self.folder, self.command, self.names = folder, command, tuple(names)
        self._recognised, self._option = recognised, option

    def require(self) -> None:
        """Do nothing if the command may write here.

        Raises:
            UsageError: if the folder is a run, or holds files of these names that the command did not write.
        """
        refuse_runs(self.folder, self.command, self._option)
        own = self._marks().get(self.command)
        if own is None and self._recognised(self.folder):
            return
        foreign = [name for name in self._there() if not self._is_own(name, own or {})]
        if foreign:
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise UsageError(
                f"{self._option}{str(self.folder)!r}: `{self.command}` would replace {', '.join(foreign[:3])}{more} there, which it "
                f"did not write, or which was changed since; choose another folder with {self._option.strip()}, or move it away."
            )

    def begin(self, *, clear: bool = False) -> None:
        """Make the folder, and note that the command is going to write there.

        Args:
            clear: delete what an earlier call left there.

        Raises:
            UsageError: as `require`.
            RunDirectoryError: if the folder cannot be written.
        """
        self.require()
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self._there() if clear else ():
                (self.folder / name).unlink()
            self._note(dict.fromkeys(self.names, ""))

    def end(self, to_come: Sequence[str] = ()) -> None:
        """Note what the command has written.

        Args:
            to_come: names of files that are written after this.

        Raises:
            RunDirectoryError: if that cannot be written.
        """
        with disk_errors(self.folder):
            self._note({name: digests.of_file(self.folder / name) for name in self._there()} | dict.fromkeys(to_come, ""))

    def _note(self, files: dict[str, str]) -> None:
        marks = self._marks()
        others = {name: value for name, value in marks.get(self.command, {}).items() if not _fits(name, self.names)}
        write_json(self.folder / MARK, marks | {self.command: others | files})

    def _there(self) -> list[str]:
        """Return the files that have the command's names, links that lead nowhere included."""
        found = [file for name in self.names for file in self.folder.glob(name) if not file.is_dir()]
        dangling = [self.folder / name for name in self.names if os.path.islink(self.folder / name)]
        return sorted({file.relative_to(self.folder).as_posix() for file in [*found, *dangling]})

    def _is_own(self, name: str, own: dict[str, Any]) -> bool:
        """Whether the command wrote a file and nobody changed it; of what a call wrote that was cut off no digest is known."""
        if _fits(name, [pattern for pattern, digest in own.items() if digest == ""]):
            return True
        try:
            return own.get(name) == digests.of_file(self.folder / name)
        except OSError:
            return False

    def _marks(self) -> dict[str, dict[str, Any]]:
        try:
            found = read_json(self.folder / MARK)
        except UnreadableFileError:
            return {}
        return {key: value for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_run(folder: Path) -> bool:
    """Return whether a folder holds what only a training leaves there."""
    return any(True for name in _LEFT_BY_RUNS for _ in folder.glob(name))


def refuse_runs(folder: Path, command: str, option: str = "-o ") -> None:
    """Refuse a folder that is a run, or that a run keeps its own files in.

    Raises:
        UsageError: if it is one.
    """
    place = folder.resolve()
    kept = place.name in _OF_RUNS or place.name.startswith("checkpoint-")
    run = place if is_run(place) else place.parent if kept and is_run(place.parent) else None
    if run is not None:
        raise UsageError(
            f"{option}{str(folder)!r}: {run} holds a run, whose own files `{command}` does not touch; choose another folder with "
            f"{option.strip()}."
        )
