"""Micro-batches: a minibatch of states in parts that fit into memory, all of one shape where shapes decide the rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from rlcm.processes.memory_retry import BatchSize
from rlcm.types import Experience


@dataclass(frozen=True, slots=True)
class Part:
    """A micro-batch, and which rows of its minibatch it holds: the first `size` ones are real, others weigh nothing."""

    experience: Experience
    start: int
    size: int

    @property
    def rows(self) -> slice:
        """The real rows, as a part of the minibatch."""
        return slice(self.start, self.start + self.size)


class MicroBatches:
    """Cuts minibatches into parts.

    A network rounds its output in a way that depends on the shape of its batch: other shapes take other kernels. With
    `is_padded` all parts of a run have one shape, and what is left over is filled up with rows of weight 0; then one state
    always gets the same output, and a compiled network is compiled once.

    Args:
        batch: how many states a pass takes at most.
        planned: states of a minibatch, if no image is dropped; they are shared out evenly, so that little is filled up.
        is_padded: whether all parts have one shape. Otherwise the last one is as small as what is left.
        noisy_step: a row of the table that draws noise, for states that only make up the numbers.
    """

    def __init__(self, batch: BatchSize, planned: int | None = None, *, is_padded: bool = False, noisy_step: int = 0) -> None:
        self.batch, self.planned, self.is_padded, self.noisy_step = batch, planned, is_padded, noisy_step

    @property
    def states(self) -> int:
        """States of a part."""
        if not self.is_padded or not self.planned:
            return self.batch.size
        passes = -(-self.planned // self.batch.size)
        return -(-self.planned // passes)

    def over(self, minibatch: Experience, longest: int | None = None) -> Iterator[Part]:
        """Yield the parts of a minibatch.

        Args:
            longest: states of the process that has the most, where the processes share the network: all of them go through
                as many parts, and what a process has fewer is made up for by a state that weighs nothing, of size 0.
        """
        count, states = len(minibatch), self.states
        for start in range(0, count if longest is None else longest, states):
            part = minibatch.part(start, start + states)
            size = len(part)
            if not size:
                part = weightless(minibatch, self.noisy_step)
            if self.is_padded and len(part) < states:
                part = _filled_up(part, states)
            yield Part(part, start, size)


def weightless(experience: Experience, step: int) -> Experience:
    """Return a state of zeros that weighs nothing, shaped as those of `experience`, which may have none.

    Args:
        step: row of the table, with noise: without, its ratio would be 0 / 0, and 0 times that is no 0.
    """
    columns: dict[str, Any] = {}
    for field in fields(Experience):
        column = getattr(experience, field.name)
        columns[field.name] = None if column is None else column.new_zeros(1, *column.shape[1:])
    columns["steps"].fill_(step)
    return Experience(**columns)


def _filled_up(part: Experience, states: int) -> Experience:
    """Return a part with its first state repeated up to the given number; the repetitions weigh nothing."""
    index = torch.arange(states, device=part.states.device)
    index[len(part) :] = 0
    filled = part.take(index)
    weights = filled.weights.clone()
    weights[len(part) :] = 0
    return replace(filled, weights=weights)
