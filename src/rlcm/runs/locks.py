"""Locks on files, which one process at a time can have."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


def take_lock(file: Path, *, wait: bool = False) -> BaseFileLock | None:
    """Return a lock that one process at a time can have; it lets go on `release`, and with the process.

    Where the file system knows no locks, everybody gets one.

    Args:
        wait: for a process that has it; otherwise the answer is None then.
    """
    lock = FileLock(file)
    try:
        file.parent.mkdir(exist_ok=True)
        lock.acquire(blocking=wait)
    except Timeout:
        return None
    except (OSError, NotImplementedError):
        pass
    return lock


def is_held(run: Path) -> bool:
    """Return whether a process is training a run; where that is not known, none is."""
    if not (run / ".lock").is_file():
        return False
    lock = take_lock(run / ".lock")
    if lock is None:
        return True
    lock.release()
    return False
