"""What a command prints never stops its work: readers that leave, full disks, characters that the terminal does not know."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)


class _Patient(io.FileIO):
    """A file that is silent once it could not be written, and says why in `failure`."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left) and self.failure is None:
            try:
                written = super().write(left)
            except OSError as error:
                self.failure = error
                with open(os.devnull, "wb") as nothing:  # what libraries write there themselves goes nowhere, too
                    os.dup2(nothing.fileno(), self.fileno())
            else:
                if written is None:  # the file was set not to wait for a slow reader
                    select.select([], [self], [])
                left = left[written or 0 :]
        return size


class _Open(io.TextIOWrapper):
    """A text stream on which `close()` does nothing: what a command prints after a user's code is still to come."""

    def close(self) -> None:
        self.flush()


class PatientStreams:
    """Within it, standard output and error take every character and never raise; what they cannot show is written as `\\u2026`.

    Streams that are not the process's own, such as a test's, stay as they are.
    """

    def __init__(self) -> None:
        self.refused: OSError | None = None
        """At the end: why standard output could not be written. A reader that has left, as in `| head -1`, is no reason."""

    def __enter__(self) -> PatientStreams:
        self._before = sys.stdout, sys.stderr
        self._raw = _Patient(1, "wb", closefd=False) if _is_own(sys.stdout, 1) else None
        if self._raw is not None:
            sys.stdout = _text(self._raw, sys.stdout)
        if _is_own(sys.stderr, 2):
            sys.stderr = _text(_Patient(2, "wb", closefd=False), sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream, before in zip((sys.stdout, sys.stderr), self._before, strict=True):
            if stream is not None and stream is not before:
                with suppress(ValueError):  # its buffer was closed
                    stream.flush()
        failure = self._raw.failure if self._raw is not None else None
        if failure is not None and failure.errno not in _NOBODY_READS:
            self.refused = failure
        sys.stdout, sys.stderr = self._before


def _is_own(stream: TextIO | None, number: int) -> bool:
    """Return whether a stream is the process's; one that was closed before the command began becomes one that goes nowhere."""
    if stream is None:
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)  # so that no file which the command opens takes the place
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            return True
        return False  # a file has taken the place already
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        return False


def _text(raw: io.FileIO, like: TextIO | None) -> TextIO:
    if not isinstance(like, io.TextIOWrapper):
        return _Open(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    unbuffered = like.write_through
    return _Open(
        raw if unbuffered else io.BufferedWriter(raw),
        like.encoding,
        "backslashreplace",
        line_buffering=like.line_buffering,
        write_through=unbuffered,
    )
