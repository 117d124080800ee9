"""Runs as processes of their own: they outlive the page, and the page finds them again.

What belongs to them lies in `.ui/` of the runs' folder: NAME.config.yaml, what was asked for; NAME.log, what the process wrote;
NAME.json, which process it is. Others may have written there, too: nothing outside is read or written by way of links, and a
process counts as a training only if it is this user's own and was started as one of that name.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from rlcm.errors import RunDirectoryError, UsageError
from rlcm.report.values import mapping
from rlcm.runs.files import MEGABYTE, is_there, printable, read_end, read_json, stamp, why_no_file
from rlcm.runs.locks import take_lock
from rlcm.runs.refusals import disk_errors
from rlcm.runs.rundir import RunDirectory, default_name
from rlcm.runs.serialization import write_bytes, write_json
from rlcm.training.config import TrainConfig
from rlcm.ui.processes import created, same_process, started_as
from rlcm.ui.trial import Cost, try_round

FOLDER = ".ui"
CHECK_SECONDS = 120
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
        with self._alone():
            name = config.name or self._new_name(config)
            if self._is_taken(name):
                raise UsageError(f"name={name!r}: there is a run of that name already; choose another name.")
            config = config.model_copy(update={"name": name, "output": str(self.folder)})
            file = self._file(name, "config.yaml")
            with disk_errors(file):
                write_bytes(file, config.dump().encode())
                self._file(name, "log").unlink(missing_ok=True)
            self._launch(name, "train", str(file))
        return name

    def check(self, config: TrainConfig) -> None:
        """Do what a training does before it loads its model, in a process of its own: rewards are anybody's code.

        Raises:
            UsageError: what is wrong, in the training's own words.
            RunDirectoryError: if nothing can be written there.
        """
        with self._alone():
            if config.name and self._is_taken(config.name):
                raise UsageError(f"name={config.name!r}: there is a run of that name already; choose another name.")
        file = self._place() / f".check-{secrets.token_hex(8)}.yaml"
        with disk_errors(file):
            write_bytes(file, config.model_copy(update={"output": str(self.folder)}).dump().encode())
        try:
            done = subprocess.run(
                [*self.command, "train", str(file), "--check"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=CHECK_SECONDS,
                env=_surroundings(),
            )
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"it was not ready within {CHECK_SECONDS} seconds: a file of a reward that does its work while it is read, or a "
                "reward server that does not answer, can be why."
            ) from None
        finally:
            file.unlink(missing_ok=True)
        if done.returncode:
            text = done.stdout.decode("utf-8", "replace")
            raise UsageError(last_words(text) or f"it would end with exit code {done.returncode}: {text.strip()[-2000:]}")

    def trial(self, config: TrainConfig) -> Cost | None:
        """Return what a training would cost, by a round that is tried; None where that cannot be told."""
        return try_round(config, self.command, _surroundings())

    def resume(self, name: str, *changes: str) -> None:
        """Go on with a run that was stopped, or, with changes such as `run.rounds=20`, has ended.

        Raises:
            UsageError: if it is being trained, or has ended.
            RunDirectoryError: if nothing can be written there.
        """
        with self._alone():
            if self._state(name).alive:
                raise UsageError(f"{name} is being trained at this moment; stop it first.")
            self._launch(name, "train", *changes, "--resume", str(self.folder / name))

    def retry(self, name: str) -> None:
        """Start a training that ended with an error once more: where it stopped, or from its beginning where there is no run yet.

        Raises:
            UsageError: if it is being trained, or nothing is known of what was asked for.
            RunDirectoryError: if nothing can be written there.
        """
        with self._alone():
            if self._state(name).alive:
                raise UsageError(f"{name} is being trained at this moment.")
            if os.path.isfile(self.folder / name / "config.yaml"):
                self._launch(name, "train", "--resume", str(self.folder / name))
                return
            file = self._file(name, "config.yaml")
            if not os.path.isfile(file):
                raise UsageError(f"{file} is gone, which said what was asked for; start {name} again under Train.")
            self._launch(name, "train", str(file))

    def stop(self, name: str) -> None:
        """Ask a training to end after its present round, with everything saved; to ask again changes nothing.

        Raises:
            UsageError: if this page has not started it, or it has ended.
        """
        with self._lock:
            process = self._process(name)
            if process is None:
                if "code" in self._noted(name):
                    raise UsageError(f"{name} has ended, so there is nothing to stop.")
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

    def names(self) -> list[str]:
        """Return the names of all trainings that were started from a page of this folder, and are not forgotten."""
        try:
            found = os.listdir(self._place())
        except (OSError, RunDirectoryError):
            return []
        names = [file.removesuffix(".json") for file in found if file.endswith(".json") and not file.startswith(".")]
        return sorted(name for name in names if printable(name) == name)

    def alive(self) -> list[str]:
        """Return the names of runs that go on."""
        return [name for name in self.names() if self.state(name).alive]

    def forget(self, name: str) -> None:
        """Delete what belongs to a training that has ended; its run stays as it is.

        Raises:
            UsageError: if it goes on.
        """
        with self._alone():
            if self._state(name).alive:
                raise UsageError(f"{name} is being trained at this moment; stop it first.")
            with disk_errors(self.folder / FOLDER):
                for ending in ("config.yaml", "log", "json"):
                    self._file(name, ending).unlink(missing_ok=True)

    def log(self, name: str, most: int = 20_000) -> str:
        """Return the end of what a training wrote, at most so many bytes; nothing where it wrote nothing."""
        try:
            return read_end(self._file(name, "log"), most)
        except RunDirectoryError:
            return ""

    def failure(self, name: str) -> str:
        """Return why a training ended badly, in its own words where it left any; nothing where it goes on, or ended well."""
        if self.state(name).alive:
            return ""
        noted = self._noted(name)
        code = noted.get("code")
        if code == 0 or not isinstance(code, int):  # of one that another page started there is no code
            return "" if code == 0 else last_words(self.log(name).rpartition(PROMPT)[2])
        if _was_asked_to_end(noted):
            return ""
        ended = f"It was ended by signal {-code}" if code < 0 else f"It ended with exit code {code}"
        memory = ", as the system does where memory runs out" if code == -getattr(signal, "SIGKILL", 9) else ""
        return last_words(self.log(name).rpartition(PROMPT)[2]) or f"{ended}{memory}; its log says how far it came."

    def was_stopped(self, name: str) -> bool:
        """Return whether a training ended because that was asked for before it had a round to end with."""
        return _was_asked_to_end(self._noted(name))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder against other threads and other pages, which start trainings there, too."""
        with self._lock:
            with disk_errors(self.folder / FOLDER):
                self._place().mkdir(parents=True, exist_ok=True)
            lock = take_lock(self._place() / ".lock", wait=True)
            try:
                yield
            finally:
                if lock is not None:
                    lock.release()

    def _place(self) -> Path:
        place = self.folder / FOLDER
        if place.is_symlink() or (is_there(place) and not place.is_dir()):
            raise RunDirectoryError(f"{place}, where the page keeps its trainings, is no folder of its own; move it away.")
        return place

    def _is_taken(self, name: str) -> bool:
        place = self.folder / name
        other = is_there(place) and not os.path.isdir(place)
        return other or RunDirectory(place).has_results or self._state(name).alive

    def _new_name(self, config: TrainConfig) -> str:
        name = default_name(config.rewards[0].label)
        names = chain([name], (f"{name}-{number}" for number in count(2)))  # of trainings that start in the same second
        return next(one for one in names if not is_there(self.folder / one) and not self._is_taken(one))

    def _launch(self, name: str, *arguments: str) -> None:
        log = self._file(name, "log")
        try:
            with self._open_log(log) as file:
                file.write(f"{PROMPT}rlcm {shlex.join(arguments)}\n".encode(errors="replace"))
                file.flush()
                child = subprocess.Popen(
                    [*self.command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=_surroundings(),
                )
        except OSError as error:
            raise RunDirectoryError(f"the training cannot be started: {error.strerror or error} ({log}).") from error
        self._children[name] = child
        with disk_errors(log):
            write_json(self._file(name, "json"), {"pid": child.pid, "created": created(child.pid), "stopping": False})

    @staticmethod
    def _open_log(log: Path) -> BinaryIO:
        if is_there(log) and (log.is_symlink() or why_no_file(log)):
            raise RunDirectoryError(f"the training cannot be started: {log} is no file of its own; move it away.")
        return open(log, "ab", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666))

    def _state(self, name: str) -> Job:
        try:
            if self._process(name) is not None:
                return Job(name, True, bool(self._noted(name).get("stopping")))
            found = stamp(self._file(name, "log"))
        except RunDirectoryError:  # what the page keeps cannot be read, so it knows of none
            return Job(name, False)
        return Job(name, False, ended=None if found is None else found[0] / 1e9)

    def _process(self, name: str) -> psutil.Process | None:
        """Return the process of a training, None where it has ended."""
        child = self._children.get(name)
        if child is not None and child.poll() is None:
            return psutil.Process(child.pid)
        if self._children.pop(name, None) is not None and child is not None:
            with contextlib.suppress(OSError):
                write_json(self._file(name, "json"), {**self._noted(name), "code": child.returncode})
        noted = self._noted(name)
        process = same_process(noted.get("pid"), noted.get("created"))
        # Anybody may have written the note, and its number be another's by now.
        own = process is not None and started_as(process, self._file(name, "config.yaml"), self.folder / name)
        return process if own else None

    def _noted(self, name: str) -> Mapping[str, Any]:
        try:
            return mapping(read_json(self._file(name, "json"), MEGABYTE))
        except RunDirectoryError:
            return {}

    def _file(self, name: str, ending: str) -> Path:
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise UsageError(f"{name!r} is not the name of a run.")
        return self._place() / f"{name}.{ending}"


def last_words(text: str) -> str:
    """Return the error at the end of what a training wrote, in its own words; nothing where it wrote none."""
    found = re.search(r"^error: (.*)\Z", text, flags=re.DOTALL | re.MULTILINE)
    if found:
        return found[1].strip()
    return text.strip().splitlines()[-1] if "Traceback (most recent call last)" in text else ""


def _surroundings() -> dict[str, str]:
    # Wide lines and no colours: the log is read on a page, not in a terminal.
    return os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}


def _was_asked_to_end(noted: Mapping[str, Any]) -> bool:
    return bool(noted.get("stopping")) and noted.get("code") in (-signal.SIGTERM, 128 + signal.SIGTERM)
