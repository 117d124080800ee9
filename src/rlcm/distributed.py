"""One process or many: shares of a batch, gathered results, summed gradients. Without torch.distributed all are no-ops."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class World:
    """The processes of a run. A single one is a world of size 1."""

    def __init__(self) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if active else 0
        self.size = dist.get_world_size() if active else 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this process's contiguous part of `count` things; parts differ by one at most."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of ranks, on the CPU; the numbers of rows may differ."""
        rows = rows.cpu()
        if self.size == 1:
            return rows
        count = torch.tensor([len(rows)])
        counts = [torch.empty_like(count) for _ in range(self.size)]
        dist.all_gather(counts, count)
        longest = max(int(c) for c in counts)
        padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a CPU tensor over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; a process without work counts as zero."""
        if self.size == 1:
            return
        with_grad = list(parameters)
        for parameter in with_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in with_grad if p.grad is not None])
        dist.all_reduce(flat)
        for parameter, part in zip(with_grad, flat.split([p.numel() for p in with_grad]), strict=True):
            parameter.grad = part.view_as(parameter)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()
