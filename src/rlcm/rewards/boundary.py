"""The one boundary through which user code runs: in a thread of its own, for a limited time, whatever it raises or changes.

In the thread, KeyboardInterrupt is the user code's own and never the user's Ctrl-C, which goes to the main thread. What is kept per
thread (torch's grad mode, autocast and default device, NumPy's errstate) ends with it, and signal handlers cannot be set in it.
Threads that it starts end with the process, as it does itself.
"""

from __future__ import annotations

import logging
import queue
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from rlcm.errors import RLCMError
from rlcm.rewards.of_thread import THREAD_TRAITS
from rlcm.rewards.settings import TIMEOUT_SECONDS
from rlcm.rewards.surroundings import Surroundings, put_back

T = TypeVar("T")

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often somebody who waits looks whether the run is to stop; answers are noticed at once."""
STOP_SECONDS = 30.0
"""How long a call may go on after the wish to stop; three times as long as the longest before it, if that is more."""

LONGEST_TEXT = 2000
"""Letters of an error's text that are shown."""

_surroundings = Surroundings()
_told: set[tuple[str, str]] = set()
_was_given_up = threading.Event()
_NOT_THEIRS = (
    *(
        str(Path(__file__).with_name(name))
        for name in ("boundary.py", "user.py", "imported.py", "coroutines.py", "composition")
    ),
    sysconfig.get_path("stdlib"),
    "<frozen",
)


class UserCodeError(Exception):
    """User code raised, or was given up. The text continues a sentence that begins with whose code it is."""


class UserThread(threading.Thread, Generic[T]):
    """A daemon thread that calls user code once and keeps what came of it."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = like_here(work)
        self.visit: object = None
        self.value: T
        self.error: BaseException | None = None
        self.text = ""
        """What is said of the error."""
        self.who, self.changed = "", list[str]()
        self.cancel: Callable[[], object] = lambda: None
        """Ends what the thread waits for, where that can be ended."""

    def run(self) -> None:
        """Call the user code."""
        self.visit = _surroundings.enter(self.name)
        try:
            self.value = self._work()
        except BaseException as error:
            self.error = error
            self.text = _described(error)
        finally:
            del self._work
            self.who, self.changed = _surroundings.leave(self.visit)


class UserCode:
    """The code of one user's function, class or file.

    Args:
        name: what it is called in warnings.
        timeout_seconds: how long one call may take.
    """

    def __init__(self, name: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.name, self.timeout_seconds = name, timeout_seconds
        self._longest = 0.0
        self.is_known = False
        """Whether a call has ended."""
        self.was_stopped = False
        """Whether a call was given up because the run was to stop."""
        self.meddles = False
        """Whether it changed the state of the process."""

    def run(self, work: Callable[[], T], stop_wanted: Callable[[], bool] = lambda: False) -> T:
        """Return what `work` returns. An exception that a signal raises in the waiting thread ends the wait.

        Args:
            work: calls the user code; it is called in another thread.
            stop_wanted: whether the run is to stop; a call that then takes unusually long is given up.

        Raises:
            RLCMError: if `work` raises one.
            UserCodeError: if it raises anything else, whatever it is, or is given up.
        """
        thread = UserThread(work, self.name)
        thread.start()
        try:
            self._wait(thread, stop_wanted)
        except BaseException:
            self._give_up(thread)
            raise
        self._tell(thread.who, thread.changed)
        self.is_known = True
        if isinstance(thread.error, RLCMError):
            raise thread.error
        if thread.error is not None:
            raise UserCodeError(thread.text) from thread.error
        return thread.value

    def here(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, called in this thread, whose state it may not change either; what it raises is its own."""
        visit = _surroundings.enter(self.name)
        states = [trait.read() for trait in THREAD_TRAITS]
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()):  # put back at the end
                return work()
        finally:
            who, changed = _surroundings.leave(visit)
            self._tell(who, changed)
            self._tell(self.name, put_back(THREAD_TRAITS, states))  # nobody else can have changed these

    def _wait(self, thread: UserThread[Any], stop_wanted: Callable[[], bool]) -> None:
        """Wait for the thread's end."""
        began = time.monotonic()
        stopping_since: float | None = None
        while True:
            took = time.monotonic() - began
            thread.join(max(0.0, min(POLL_SECONDS, self.timeout_seconds - took)))
            if not thread.is_alive():
                self._longest = max(self._longest, time.monotonic() - began)
                return
            took = time.monotonic() - began
            if took >= self.timeout_seconds:
                raise UserCodeError(
                    f"was not done within {self.timeout_seconds:g} s and was given up; if it needs longer, set timeout_seconds beside "
                    f"its name under rewards:, such as timeout_seconds: {2 * self.timeout_seconds:g} (for "
                    f"a function that Python passes, as its attribute: f.timeout_seconds = {2 * self.timeout_seconds:g})"
                )
            here = threading.current_thread()
            if isinstance(here, _BesideThread) and here.is_left:
                raise UserCodeError("was given up: nobody waits for it any more")
            if stopping_since is None and stop_wanted():
                stopping_since = time.monotonic()
            if stopping_since is not None and time.monotonic() - stopping_since > max(STOP_SECONDS, 3 * self._longest):
                self.was_stopped = True
                raise UserCodeError(f"was given up: the run is to stop, and it was still at work after {took:.0f} s")

    def _give_up(self, thread: UserThread[Any]) -> None:
        """Leave a thread alone; Python cannot end it."""
        _was_given_up.set()
        thread.cancel()
        self._tell(*_surroundings.leave(thread.visit))

    def _tell(self, who: str, changed: list[str]) -> None:
        self.meddles = self.meddles or bool(changed)
        new = [what for what in changed if (who, what) not in _told]
        _told.update((who, what) for what in new)
        if new:
            logger.warning(
                "%s changed %s, on which the whole run depends; it was put back. Let it leave this as it found it.",
                who,
                " and ".join(new),
            )


def like_here(work: Callable[[], T]) -> Callable[[], T]:
    """Return `work` such that in another thread it finds this thread's grad mode and GPU."""
    grad = torch.is_grad_enabled()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def there() -> T:
        if gpu is not None:
            torch.cuda.set_device(gpu)
        with torch.set_grad_enabled(grad):
            return work()

    return there


class _BesideThread(threading.Thread):
    is_left = False


class Beside:
    """A daemon thread that works through what it is given, in order, beside the caller's own work.

    Unlike an executor of the standard library it is not waited for where the caller leaves early, nor at the process's end.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = _BesideThread(target=self._go, name="beside", daemon=True)
        self._thread.start()

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.is_left = True  # what is not done yet is not wanted any more
        self._waiting.put(None)

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Return the result to come of `work(*arguments)`."""
        future: Future[T] = Future()
        self._waiting.put((future, like_here(lambda: work(*arguments))))
        return future

    def _go(self) -> None:
        while (entry := self._waiting.get()) is not None and not self._thread.is_left:
            future, work = entry
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            del entry, future, work


def result(future: Future[T]) -> T:
    """Return the result of a future; an exception that a signal raises in this thread ends the wait, on every system."""
    while not future.done():
        wait([future], POLL_SECONDS)
    return future.result()


def is_left_running() -> bool:
    """Return whether user code was given up or is still at work, so that Python's end could wait for its threads forever."""
    return _was_given_up.is_set() or any(isinstance(thread, UserThread) for thread in threading.enumerate())


def _described(error: BaseException) -> str:
    """Return what an error is and where it was raised: the last line that is neither in a package nor in Python itself."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # it is the user's class
        text = ""
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]} ..."
    where = ""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and not frame.filename.startswith(_NOT_THEIRS)
    ]
    if frames:
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return f"raised {kind}{': ' if text else ''}{text}{where}"
