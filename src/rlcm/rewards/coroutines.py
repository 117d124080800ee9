"""The event loop of async rewards: one for the whole process, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable
from typing import Any

import torch

from rlcm.rewards.boundary import UserThread

PATIENCE_SECONDS = 2.0
"""How long a loop may be busy before it counts as blocked."""


class EventLoop:
    """A loop that goes on for good: sessions that a reward opens stay usable between calls, and rewards can be called where a loop
    already runs (a notebook)."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._go, name="rewards", daemon=True).start()

    def _go(self) -> None:
        while not self._loop.is_closed():
            # SystemExit and KeyboardInterrupt of one task end `run_forever`; whoever waits for the task gets them, too.
            with contextlib.suppress(BaseException):
                self._loop.run_forever()

    def wait(self, answer: Awaitable[Any]) -> Any:
        """Return what a coroutine returns, or raise what it raises, whatever that is."""
        grad = torch.is_grad_enabled()

        async def finish() -> tuple[Any, BaseException | None]:
            try:
                with torch.set_grad_enabled(grad):
                    return await answer, None
            except BaseException as error:  # the loop would stop at some, and take others for its own
                return None, error

        future = asyncio.run_coroutine_threadsafe(finish(), self._loop)

        def cancel() -> None:
            future.cancel()
            if not self._is_alive():
                _forget(self)

        thread = threading.current_thread()
        if isinstance(thread, UserThread):
            thread.cancel = cancel
        value, error = future.result()
        if error is not None:
            raise error
        return value

    def _is_alive(self) -> bool:
        heard = threading.Event()
        self._loop.call_soon_threadsafe(heard.set)
        return heard.wait(PATIENCE_SECONDS)


_lock = threading.Lock()
_current: EventLoop | None = None


def event_loop() -> EventLoop:
    """Return the loop of the process."""
    global _current
    with _lock:
        _current = _current or EventLoop()
        return _current


def _forget(loop: EventLoop) -> None:
    """Let the next coroutine have another loop than this one, which a reward blocks."""
    global _current
    with _lock:
        if _current is loop:
            _current = None
