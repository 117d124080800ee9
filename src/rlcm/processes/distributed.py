"""One process or many: shares of a batch, gathered results, summed gradients, and errors that all processes hear of.

A run's processes are those that torchrun, `accelerate launch` or a scheduler announce in the environment. With a single one
everything here does nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlcm import errors
from rlcm.errors import ConfigError, ProcessError, RLCMError
from rlcm.processes.last_words import PATIENCE_SECONDS, LastWords, within

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class World:
    """The processes of a run. A single one is a world of size 1.

    Args:
        store: of the process group, where errors are left for the other processes; None for a group that others set up.
        alone: leave a process group out of account that there may be.
    """

    _met_at: ClassVar[dist.Store | None] = None
    _left: ClassVar[list[Any]] = []

    def __init__(self, store: dist.Store | None = None, *, alone: bool = False) -> None:
        active = dist.is_available() and dist.is_initialized() and not alone
        self.rank = dist.get_rank() if active else 0
        self.size = dist.get_world_size() if active else 1
        self.is_broken = False
        """Whether a collective failed, so that no further one can work."""
        self.is_lockstep = False
        """Whether all processes must call the network equally often, as it is shared between them; see `rlcm.processes.sharding`."""
        self._last_words = LastWords(store, self.rank, self.size)
        self._agreed: BaseException | None = None
        # Counts, flags and texts lie on the CPU whatever the gradients lie on.
        needs_own = self.size > 1 and "cpu:gloo" not in str(dist.get_backend_config())
        self._group = dist.new_group(backend="gloo") if needs_own else None

    @classmethod
    def join(cls, timeout_seconds: float, device: str = "auto") -> World:
        """Return the world that the environment announces, having met its other processes; alone, where it announces none.

        With CUDA, the process takes the GPU of its LOCAL_RANK.

        Args:
            timeout_seconds: how long a process waits for the others in any one exchange.
            device: as `model.device`.

        Raises:
            ConfigError: if the environment is incomplete, or names a GPU that is not there.
            ProcessError: if the others cannot be met.
        """
        if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE") or 1) < 2:
            return cls(cls._met_at)
        missing = [name for name in _VARIABLES if name not in os.environ]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start the processes by torchrun or "
                "accelerate launch, or set the variables as docs/distributed.md shows."
            )
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            _take_gpu(device)
        timeout = timedelta(seconds=timeout_seconds)

        def meet() -> dist.Store:
            if cuda:
                _take_gpu(device)  # of this thread
            store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
            return store

        try:
            store = within(timeout_seconds + PATIENCE_SECONDS, meet)  # the limit of its own forgets a process that stands still
        except (RuntimeError, ValueError) as error:
            raise ProcessError(
                f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not meet the others at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({_first_line(error)}); check that all were started, "
                "and that this address can be reached from every machine."
            ) from error
        cls._met_at = store
        return cls(store)

    def leave(self) -> None:
        """Take leave of the other processes; afterwards this process is no part of any group."""
        World._met_at = None
        if self.size > 1 and dist.is_initialized():
            # The last reference to a group waits for gloo's threads, with the interpreter's lock held, and they need the lock to let
            # go of the tensors they exchanged (torch 2.7): kept, the group does not wait while they may be at it.
            World._left.append(dist.group.WORLD)
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this process's contiguous part of `count` things; parts differ by one at most, the first are the longer."""
        even, longer = divmod(count, self.size)
        start = self.rank * even + min(self.rank, longer)
        return range(start, start + even + (self.rank < longer))

    def rows(self, count: int) -> tuple[Tensor, Tensor]:
        """Return this process's share of `count` rows, and the rows that it has to play.

        They are the same, but that a process without a share plays the first row along and throws the result away: so it knows
        the shapes and names of what it gathers. With `is_lockstep` all processes play equally many, for the same reason.
        """
        mine = torch.tensor(list(self.share(count)), dtype=torch.long)
        played = -(-count // self.size) if self.is_lockstep else max(1, len(mine))
        return mine, torch.cat((mine, torch.zeros(played - len(mine), dtype=torch.long)))

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of ranks, on the CPU; the numbers of rows may differ."""
        rows = rows.cpu()
        if self.size == 1:
            return rows
        count = torch.tensor([len(rows)])
        counts = [torch.empty_like(count) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(counts, count, group=self._group))
        longest = max(int(c) for c in counts)
        padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        if padded.numel():
            self._exchange(lambda: dist.all_gather(parts, padded, group=self._group))
        return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a CPU tensor over the processes."""
        if self.size > 1:
            values = values.clone()
            self._exchange(lambda: dist.all_reduce(values, group=self._group))
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        return bool(self.sum(torch.tensor([int(flag)])))

    def largest(self, value: float) -> float:
        """Return the largest of the processes' values."""
        return float(self.gather_rows(torch.tensor([value], dtype=torch.float64)).max())

    def gather(self, value: T) -> list[T]:
        """Return the JSON values of all processes, in the order of ranks."""
        if self.size == 1:
            return [value]
        return [json.loads(text) for text in self._texts(json.dumps(value))]

    def from_main(self, value: T) -> T:
        """Return the main process's JSON value on all processes."""
        if self.size == 1:
            return value
        found: T = json.loads(self._texts(json.dumps(value) if self.is_main else "")[0])
        return found

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; a process without work counts as zero."""
        if self.size == 1:
            return
        with_grad = list(parameters)
        for parameter in with_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in with_grad if p.grad is not None])
        self._exchange(lambda: dist.all_reduce(flat))
        for parameter, part in zip(with_grad, flat.split([p.numel() for p in with_grad]), strict=True):
            parameter.grad = part.view_as(parameter)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.any(False)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within it a process works alone, without exchanges; an error of one process is then raised on all of them.

        Raises:
            RLCMError: on the other processes, of the same kind where it is one of the product's own errors.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        if self.size == 1:
            return
        texts = self._texts(_described(failure, self.rank) if failure else "")
        first = next((text for text in texts if text), None)
        if first is not None:
            self._agreed = failure or _restored(first, self.size)
            raise self._agreed

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around everything: an error of this process is left for the others, and who loses the others says why.

        Raises:
            RLCMError: the first error that any process met, in place of the lost connection that follows from it.
        """
        try:
            yield
        except Exception as error:
            if self.size == 1 or error is self._agreed:
                raise
            self.is_broken = True
            if isinstance(error, _Lost):
                text, silent = self._last_words.hear()
                if text is not None:
                    raise _restored(text, self.size) from None
                named = ", ".join(map(str, silent))
                raise ProcessError(f"{error}{f' No sign of life from process {named}.' if silent else ''}") from None
            text = self._last_words.tell(_described(error, self.rank))
            if text is not None:
                raise _restored(text, self.size) from error
            raise

    def is_shared(self, error: BaseException) -> bool:
        """Return whether all processes raise this error or its like at the same place."""
        return self.size > 1 and error is self._agreed

    def _exchange(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            self.is_broken = True
            raise _Lost(
                f"process {self.rank} of {self.size} lost the others ({_plain(error)}): one of them was killed, ran out of "
                "memory or did not answer within run.timeout_seconds. Go on from the last checkpoint with `rlcm train --resume`."
            ) from error

    def _texts(self, text: str) -> list[str]:
        """Return the texts of all processes, by rank."""
        data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)[: len(text.encode())]
        size = self.gather_rows(torch.tensor([len(data)]))
        if not size.any():
            return [""] * self.size
        parts = self.gather_rows(data).split(size.tolist())
        return [bytes(part.tolist()).decode() for part in parts]


class _Lost(ProcessError):
    """A collective failed."""


def is_main_process() -> bool:
    """Return whether the environment makes this process the first of its run."""
    return os.environ.get("RANK", "0") == "0"


def _take_gpu(device: str) -> None:
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if ":" in device:
        raise ConfigError(f"model.device={device} puts all processes on one GPU; use model.device=cuda.")
    if local >= there:
        raise ConfigError(f"LOCAL_RANK={local}, but this machine has {there} GPUs; start at most {there} processes on it.")
    torch.cuda.set_device(local)


def _described(error: Exception, rank: int) -> str:
    kind = type(error).__name__
    text = str(error) if isinstance(error, RLCMError) else f"{kind}: {error}"
    return json.dumps({"rank": rank, "kind": kind, "text": text})


def _restored(text: str, size: int) -> RLCMError:
    found = json.loads(text)
    kind = getattr(errors, found["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, RLCMError)):
        kind = ProcessError
    return kind(f"process {found['rank']} of {size}: {found['text']}")


def _plain(error: BaseException) -> str:
    """Return a collective's error without the place in its source, and without its advice."""
    return re.sub(r"^\[[^\]]*\]\s*", "", _first_line(error)).split(". This is")[0]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
