"""What a person sees while a run goes on: a live line in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ConsoleProgress:
    """Shows rounds on a console. Use it as a context manager, and as a trainer's watcher."""

    def __init__(self, console: Console | None = None, every_seconds: float = 10.0) -> None:
        self.console = console or Console(stderr=True)
        self._every = every_seconds
        self._last = float("-inf")
        self._first_reward: float | None = None
        self._bar = Progress(
            TextColumn("round {task.fields[rounds]}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("progress", total=None, rounds="", text="")

    def __enter__(self) -> ConsoleProgress:
        return self  # the bar comes with the first round: none stands above an error

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def began(self, metrics: dict[str, float], done: int) -> None:
        """Take up a run whose first round had these metrics, and of which so many rounds are done."""
        first = metrics.get("reward")
        self._first_reward = first if isinstance(first, (int, float)) else None
        self._bar.start()
        self._bar.reset(self._task, completed=done)  # the speed is that of the rounds from here on

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        """Show a finished round; the bar, and the time that is left, go by the metric `progress`."""
        number, done = int(metrics["round"]), metrics["progress"]
        if self._first_reward is None:
            self._first_reward = metrics["reward"]
            self._bar.start()
        text = f"reward {metrics['reward']:.4g} (began {self._first_reward:.4g})  {metrics['images_per_second']:.1f} images/s"
        self._bar.update(self._task, completed=done, total=1.0, rounds=f"{number}/{rounds}", text=text)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._last >= self._every or done >= 1):
            self._last = now
            left = (1 - done) * metrics["seconds"] / done
            self.console.print(f"round {number}/{rounds}  {text}  {left:.0f} s left", highlight=False, markup=False)
