"""Signals that end a command, with a word, the usual exit code, and in bounded time."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
USERS = tuple(number for number in SIGNALS if number.name.startswith("SIGUSR"))
"""Schedulers warn a job with them before its time is over; a program may have a use of its own for them."""
GRACE_SECONDS = 5.0
"""How long a process that was told to end may take for it."""

Handler = Callable[[int, FrameType | None], Any]
_savers: list[Callable[[], None]] = []
_installed: list[Handlers] = []


_masks: list[Any] = []


def _before_a_fork() -> None:
    """Hold signals back, so that none reaches the child while it still has our handlers."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS))


def _in_the_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _in_a_child() -> None:
    """Let signals do in a forked process what they did before: it is a worker of somebody's, and none of our commands.

    Without this a worker of `multiprocessing` would take its SIGTERM as a wish, and the byte that Python writes for every signal
    would reach the parent, which shares the socket.
    """
    signal.set_wakeup_fd(-1)
    for handlers in reversed(_installed):
        handlers.__exit__()
    _in_the_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_a_fork, after_in_parent=_in_the_parent, after_in_child=_in_a_child)


class Ended(BaseException):
    """A signal ends the command. It is no `Exception`, so that only who means it catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {describe(number)}")
        self.exit_code = 128 + number


def describe(number: int) -> str:
    """Return what people call a signal."""
    name = signal.Signals(number).name
    return {"SIGINT": "Ctrl-C", "SIGHUP": "the closing of the terminal (SIGHUP)"}.get(name, name)


def _is_caught_in_c(number: int) -> bool:
    """Return whether a library has set a handler that Python does not know of, as `faulthandler.register` does; known on Linux only."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
    except (OSError, StopIteration, ValueError):
        return False
    return bool(caught >> (number - 1) & 1)


class Handlers:
    """Within it, a function is called by the signals that end a process; then they do what they did before.

    A signal that is ignored stays ignored: `nohup` does that to SIGHUP, a shell to the SIGINT of what it puts in the background.
    SIGUSR1 and SIGUSR2 stay with a program that handles them itself.
    Threads other than the main one cannot take signals; there it does nothing.
    """

    def __init__(self, take: Handler) -> None:
        self._take = take
        self.previous: dict[int, Any] = {}
        """What the signals did before, by number; empty again when they do it again."""

    def __enter__(self) -> Handlers:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if self._is_free(number):
                    self.previous[number] = signal.signal(number, self._take)
            _installed.append(self)
        return self

    @staticmethod
    def _is_free(number: int) -> bool:
        """Return whether a signal would end the process, or is taken by a handler that may be set aside."""
        handler = signal.getsignal(number)
        if number in USERS:
            return (handler == signal.SIG_DFL and not _is_caught_in_c(number)) or handler in [one._take for one in _installed]
        return handler not in (signal.SIG_IGN, None)  # None: set by a program that is not Python

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):
            _installed.remove(self)
        previous, self.previous = self.previous, {}
        for number, handler in previous.items():
            signal.signal(number, handler)

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        """Let a signal do what it did before, now and from now on."""
        handler = self.previous.get(number, signal.SIG_DFL)
        self.__exit__()
        if callable(handler):
            handler(number, frame)
        else:
            signal.raise_signal(number)


@contextmanager
def saving(save: Callable[[], None]) -> Iterator[None]:
    """Within it, `save` is called before `Ending` ends the process by force; it may be in another thread, and called twice."""
    _savers.append(save)
    try:
        yield
    finally:
        _savers.remove(save)


@contextmanager
def until_told() -> Iterator[None]:
    """Within it, a signal is the end that was meant: for servers, which have no other."""
    with suppress(KeyboardInterrupt, Ended):
        yield


class Ending:
    """What signals do to a command: `Ended` is raised, so that it ends in order; what takes longer than the grace ends at once.

    A second signal ends a command that is ending at once. Who takes the first one as a wish (see `rlcm.training.interrupts`) has
    the grace from the second on; what is `saving` is then called first, and a third signal spares itself that. A thread sees to
    it, so that this holds while the main one waits inside a library, or for threads that hang.
    """

    def __init__(self) -> None:
        self.ended: Ended | None = None
        """What a signal raised."""
        self._handlers = Handlers(self._take)
        self._before = -1

    def __enter__(self) -> Ending:
        self._handlers.__enter__()
        if self._handlers.previous:
            self._ear, self._mouth = socket.socketpair()
            self._mouth.setblocking(False)
            self._before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(set(self._handlers.previous),), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers.previous:
            signal.set_wakeup_fd(self._before)
            if self.ended is None:  # otherwise the thread goes on until the process has ended
                self._mouth.close()
        self._handlers.__exit__()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.ended is not None:
            _exit(number)
        term = signal.getsignal(signal.SIGTERM)
        if number in (getattr(signal, "SIGHUP", None), *USERS) and term != self._take and callable(term):
            term(signal.SIGTERM, frame)  # a server that ends in order at SIGTERM does so for the others, too
            return
        self.ended = Ended(number)
        self._mouth.send(b"\0")
        raise self.ended

    def _listen(self, signals: set[int]) -> None:
        heard, number, until = 0, int(signal.SIGTERM), float("inf")
        while True:
            wait = None if until == float("inf") else max(0.0, until - time.monotonic())
            if not select.select([self._ear], [], [], wait)[0]:
                for save in reversed(_savers):
                    save()
                _exit(number)
            try:
                data = self._ear.recv(64)
            except OSError:
                data = b""
            if not data:  # the command has ended
                self._ear.close()
                return
            for byte in data:
                if byte in signals:
                    heard, number = heard + 1, byte
            if heard > 2:
                _exit(number)
            if until == float("inf") and (heard == 2 or 0 in data):
                until = time.monotonic() + GRACE_SECONDS


def _exit(number: int) -> None:
    """End the process, whatever its threads do."""
    try:
        shown = "\x1b[?25h" if os.isatty(2) else ""  # the cursor, which a progress bar hides
        os.write(2, f"{shown}\nstopped by {describe(number)}\n".encode())
    finally:
        os._exit(128 + number)
