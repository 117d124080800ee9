"""Batches that halve themselves where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from rlcm.errors import TrainingError

T = TypeVar("T")


class BatchSize:
    """How much one pass takes at once: halved for good whenever a pass runs out of memory.

    The results of a run do not depend on it, so that halving changes nothing but the memory.

    Args:
        size: to begin with.
        setting: the name of the setting that it comes from.
        told: is told of every halving.
        is_fixed: an error takes the place of halving. For networks shared between processes, whose numbers of passes must agree.
    """

    def __init__(
        self, size: int, setting: str, told: Callable[[str], None] = lambda text: None, *, is_fixed: bool = False
    ) -> None:
        self.size, self.setting, self.told, self.is_fixed = size, setting, told, is_fixed

    def fit(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, which reads `size` and is called anew, from its beginning, after every halving.

        Raises:
            TrainingError: if a pass over a single one does not fit either; it names the setting.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                if self.size == 1 or self.is_fixed:
                    raise TrainingError(self._too_little(reason)) from error
            # Out of the handler: the traceback held on to the tensors of the pass.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.size = (self.size + 1) // 2
            self.told(f"out of memory ({reason}): going on with {self.setting}={self.size}; the results stay the same")

    def over(self, rows: Tensor, work: Callable[[Tensor], T], each: int = 1) -> Iterator[T]:
        """Yield what `work` returns for rows [n], part by part.

        Args:
            each: how much of the size a single row takes.
        """

        def next_part() -> tuple[int, T]:
            part = rows[: max(1, self.size // each)]
            return len(part), work(part)

        while len(rows):
            done, result = self.fit(next_part)
            yield result
            rows = rows[done:]

    def _too_little(self, reason: str) -> str:
        lower = f"lower {self.setting}" if self.is_fixed else f"{self.setting}=1 does not fit either"
        return (
            f"out of memory at {self.setting}={self.size} ({reason}): {lower}. Set model.gradient_checkpointing=true, "
            "model.offload_text_encoders=true or model.vae_slicing=true, make smaller images with model.height and model.width, or "
            "share the network between processes with run.sharding=fsdp2."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device or of the machine is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
