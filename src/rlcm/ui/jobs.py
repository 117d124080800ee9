"""Runs as processes of their own: they outlive the page, and the page finds them again.

What belongs to them lies in `.ui/` of the runs' folder: NAME.config.yaml, what was asked for; NAME.log, what the process wrote;
NAME.json, which process it is.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rlcm.errors import RunDirectoryError, UsageError
from rlcm.runs.rundir import RunDirectory, default_name, disk_errors
from rlcm.runs.serialization import write_bytes, write_json
from rlcm.training.config import TrainConfig

FOLDER = ".ui"
PROMPT = "$ "
"""Begins the line of a log that says what was started."""


@dataclass(frozen=True, slots=True)
class Job:
    """A training that was started from the page."""

    name: str
    alive: bool
    stopping: bool = False
    """It was asked to stop, and finishes its round."""
    ended: float | None = None
    """When a training that was started from the page wrote its last word, in seconds since 1970."""


class Jobs:
    """The runs of a folder that go on as processes.

    Args:
        folder: of the runs; it is made when the first training starts.
        command: what `rlcm` is called as.
    """

    def __init__(self, folder: Path, command: Sequence[str] = (sys.executable, "-m", "rlcm")) -> None:
        self.folder, self.command = folder, tuple(command)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(self, config: TrainConfig) -> str:
        """Start a training and return its name; `config.output` is the folder of this page.

        Raises:
            UsageError: if there is a run or a training of that name already.
            RunDirectoryError: if nothing can be written there.
        """
        name = config.name or default_name(config.rewards[0].label)
        with self._lock:
            if RunDirectory(self.folder / name).has_results or self._state(name).alive:
                raise UsageError(f"name={name!r}: there is a run of that name already; choose another name.")
            config = config.model_copy(update={"name": name, "output": str(self.folder)})
            file = self._file(name, "config.yaml")
            with disk_errors(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(file, config.dump().encode())
                self._file(name, "log").unlink(missing_ok=True)
            self._launch(name, "train", str(file))
        return name

    def resume(self, name: str) -> None:
        """Go on with a run that was stopped.

        Raises:
            UsageError: if it is being trained, or has ended.
            RunDirectoryError: if nothing can be written there.
        """
        with self._lock:
            if self._state(name).alive:
                raise UsageError(f"{name} is being trained at this moment; stop it first.")
            with disk_errors(self.folder / FOLDER):
                (self.folder / FOLDER).mkdir(exist_ok=True)
            self._launch(name, "train", "--resume", str(self.folder / name))

    def stop(self, name: str) -> None:
        """Ask a training to end after its present round, with everything saved; to ask again changes nothing.

        Raises:
            UsageError: if this page has not started it, or it has ended.
        """
        with self._lock:
            process = self._process(name)
            if process is None:
                raise UsageError(
                    f"{name} is not being trained by a process that this page started; stop it where you started it, with Ctrl-C."
                )
            noted = self._noted(name)
            if noted.get("stopping"):  # a second signal would end it at once
                return
            write_json(self._file(name, "json"), {**noted, "stopping": True})
            process.terminate()

    def state(self, name: str) -> Job:
        """Return how a training stands."""
        with self._lock:
            return self._state(name)

    def alive(self) -> list[str]:
        """Return the names of runs that go on."""
        names = sorted(file.stem for file in (self.folder / FOLDER).glob("*.json"))
        return [name for name in names if self.state(name).alive]

    def log(self, name: str, most: int = 20_000) -> str:
        """Return the end of what a training wrote, at most so many bytes; nothing where it wrote nothing."""
        try:
            with open(self._file(name, "log"), "rb") as file:
                file.seek(0, os.SEEK_END)
                size = file.tell()
                file.seek(max(0, size - most))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return text if size <= most else text.partition("\n")[2]

    def error(self, name: str) -> str:
        """Return the error with which a training ended last, in its own words; nothing where it ended well."""
        text = self.log(name).rpartition(PROMPT)[2]
        found = re.search(r"^error: (.*)\Z", text, flags=re.DOTALL | re.MULTILINE)
        if found:
            return found[1].strip()
        lines = text.strip().splitlines()
        return lines[-1] if "Traceback (most recent call last)" in text else ""

    def _launch(self, name: str, *arguments: str) -> None:
        # Wide lines and no colours: the log is read on a page, not in a terminal.
        surroundings = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
        log = self._file(name, "log")
        try:
            with open(log, "ab") as file:
                file.write(f"{PROMPT}rlcm {shlex.join(arguments)}\n".encode())
                file.flush()
                child = subprocess.Popen(
                    [*self.command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=surroundings,
                )
        except OSError as error:
            raise RunDirectoryError(f"the training cannot be started: {error.strerror or error} ({log}).") from error
        self._children[name] = child
        with disk_errors(log):
            write_json(self._file(name, "json"), {"pid": child.pid, "created": _created(child.pid), "stopping": False})

    def _state(self, name: str) -> Job:
        if self._process(name) is not None:
            return Job(name, True, bool(self._noted(name).get("stopping")))
        try:
            return Job(name, False, ended=self._file(name, "log").stat().st_mtime)
        except OSError:
            return Job(name, False)

    def _process(self, name: str) -> psutil.Process | None:
        """Return the process of a training, None where it has ended."""
        child = self._children.get(name)
        if child is not None and child.poll() is None:
            return psutil.Process(child.pid)
        self._children.pop(name, None)
        noted = self._noted(name)
        pid, created = noted.get("pid"), noted.get("created")
        if not isinstance(pid, int) or created is None or _created(pid) != created:
            return None  # it has ended, and its number may be another's by now
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except psutil.Error:
            return None

    def _noted(self, name: str) -> Mapping[str, Any]:
        try:
            found = json.loads(self._file(name, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _file(self, name: str, ending: str) -> Path:
        if Path(name).name != name:
            raise UsageError(f"{name!r} is not the name of a run.")
        return self.folder / FOLDER / f"{name}.{ending}"


def _created(pid: int) -> float | None:
    try:
        created: float = psutil.Process(pid).create_time()
    except (psutil.Error, OverflowError):
        return None
    return created
