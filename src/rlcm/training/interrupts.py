"""Signals that would end a run as a wish: the first is taken note of, the second saves what is whole and ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import FrameType

from rlcm.processes.signals import Handlers, describe, saving


class Interrupts:
    """Within it, the first signal that would end the process sets `wanted`, and the second saves and does what it did before.

    Args:
        tell: takes a line for the user at the first signal.
        save: keeps what is whole, at the second one; it must bear to be called at any point, and beside a thread that hangs.
    """

    def __init__(self, tell: Callable[[str], None] | None = None, save: Callable[[], None] | None = None) -> None:
        self.wanted = False
        self.by = 0
        """The number of the first signal; 0 until there is one."""
        self._tell, self._save = tell, save
        self._handlers = Handlers(self._take)
        self._is_saving = threading.Lock()
        self._registered = contextlib.ExitStack()

    def __enter__(self) -> Interrupts:
        self._handlers.__enter__()
        if self._handlers.previous:
            self._registered.enter_context(saving(self.keep))
        return self

    def __exit__(self, *_: object) -> None:
        self._registered.close()
        self._handlers.__exit__()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            self.keep()
            self._handlers.hand_on(number, frame)
            return
        self.wanted, self.by = True, number
        if self._tell is not None:
            with contextlib.suppress(Exception):  # the terminal may be gone, or in the middle of another line
                self._tell(
                    f"{describe(number)}: the run ends after this round (or evaluation), with everything saved; once more, and it "
                    "ends at once with the last whole round."
                )

    def keep(self) -> None:
        """Save, unless that was done."""
        with self._is_saving:
            save, self._save = self._save, None  # once: the end by force asks again
            if save is not None:
                save()
