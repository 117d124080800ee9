"""What processes that lost each other still tell each other, through the store at which they met."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")

_FAILURE = "rlcm/failure"
_HEARD = "rlcm/heard"
_HERE = "rlcm/here/"
PATIENCE_SECONDS = 5.0
"""How long a process that lost the others waits for their last words."""


class LastWords:
    """Errors left for other processes, and who of them is still there.

    Args:
        store: of the process group; None for a group that others set up, which has none that is known.
    """

    def __init__(self, store: dist.Store | None, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def tell(self, text: str) -> str | None:
        """Leave a text for the others and return None; or return the one that another process left before."""
        store = self._store
        if store is None:
            return None

        def leave() -> str | None:
            first: str = store.compare_set(_FAILURE, "", text).decode()
            if first != text:
                store.add(_HEARD, 1)
                return first
            # The store may lie in the main process, and go with it.
            until = time.monotonic() + PATIENCE_SECONDS
            while self._rank == 0 and store.add(_HEARD, 0) < self._size - 1 and time.monotonic() < until:
                time.sleep(0.05)
            return None

        try:
            return within(2 * PATIENCE_SECONDS, leave)
        except RuntimeError:  # the store is gone
            return None

    def hear(self) -> tuple[str | None, list[int]]:
        """Return the text that another process left, or None; and the ranks of those who give no sign of life."""
        store = self._store
        if store is None:
            return None, []
        others = [rank for rank in range(self._size) if rank != self._rank]

        def listen() -> tuple[str | None, list[int]]:
            store.set(f"{_HERE}{self._rank}", "yes")
            until = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < until:
                if store.check([_FAILURE]):
                    text = store.get(_FAILURE).decode()
                    store.add(_HEARD, 1)
                    return text, []
                time.sleep(0.05)
            return None, [rank for rank in others if not store.check([f"{_HERE}{rank}"])]

        try:
            return within(2 * PATIENCE_SECONDS, listen)
        except RuntimeError:  # the store is gone, or the process that holds it stands still: the first, or torchrun's own
            return None, [] if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or self._rank == 0 else [0]


def within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what a function returns, which may wait for another process for ever: it is left alone after so many seconds.

    Raises:
        RuntimeError: if it has not returned by then; and what the function raises.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="store", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise RuntimeError(f"no answer within {seconds:g} s")
    return answers[0]
