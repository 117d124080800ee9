"""Whether a process that a note names is the training that it is said to be: notes are files, and numbers are given again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil


def created(pid: int) -> float | None:
    """Return when a process began, in seconds since 1970; None where there is none of that number."""
    try:
        found: float = psutil.Process(pid).create_time()
    except (psutil.Error, OverflowError, ValueError):
        return None
    return found


def same_process(pid: Any, began: Any) -> psutil.Process | None:
    """Return the process of that number which began at that moment; None where it has ended, or these are no such values."""
    if type(pid) is not int or began is None or created(pid) != began:
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.Error:
        return None


def started_as(process: psutil.Process, config: Path, run: Path) -> bool:
    """Return whether a process is this user's own `... train CONFIG`, or `... train [KEY=VALUE] --resume RUN`, of that run."""
    try:
        line, place = process.cmdline(), Path(process.cwd())
        if process.username() != psutil.Process().username():
            return False
    except (psutil.Error, OSError):
        return False
    if len(line) < 2 or "train" not in line:
        return False
    wanted = {"train": config, "--resume": run}.get(line[-2])
    return wanted is not None and os.path.realpath(place / line[-1]) == os.path.realpath(wanted)
