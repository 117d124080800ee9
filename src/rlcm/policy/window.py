"""A window of noisy steps: the steps of a sampler that may draw noise; the others are taken without it, and are no actions."""

from __future__ import annotations

from collections.abc import Sequence

from rlcm.errors import SamplerError
from rlcm.types import TransitionTable

Window = str | Sequence[int]
"""`all`, `first:N` and `last:N` (of the steps that draw noise), or rows of the table, from 0."""
ALL = "all"


def with_window(table: TransitionTable, window: Window) -> TransitionTable:
    """Return the table whose rows outside of the window draw no noise.

    Args:
        table: of a sampler, without a final std of its own.
        window: see `Window`. Rows that draw no noise anyway may be in it.

    Raises:
        SamplerError: if a row is not there, or fewer steps draw noise than are asked for.
    """
    return table if window == ALL else table.with_noise_in(_rows(table, window))


def shown(window: Window) -> str:
    """Return a window as it is written in a configuration."""
    return window if isinstance(window, str) else f"[{', '.join(map(str, window))}]"


def _rows(table: TransitionTable, window: Window) -> Sequence[int]:
    noisy = table.noisy_steps().tolist()
    if not isinstance(window, str):
        missing = [row for row in window if not 0 <= row < len(table)]
        if missing:
            raise SamplerError(
                f"sampler.noisy_steps={shown(window)}: there is no step {missing[0]}; the {len(table)} steps of {table.name} are "
                f"0 .. {len(table) - 1}, and those that draw noise are {shown(noisy)}."
            )
        return window
    end, _, number = window.partition(":")
    if end not in ("first", "last") or not (number.isascii() and number.isdigit()) or not int(number):
        raise SamplerError(f"sampler.noisy_steps={window!r} is no window; use all, first:1, last:1, or a list such as [0, 1].")
    if int(number) > len(noisy):
        remedy = f"use {end}:{len(noisy)} or less" if noisy else "leave it out, or use more steps (sampler.steps=2 or more)"
        raise SamplerError(
            f"sampler.noisy_steps={window}: {len(noisy)} of the {len(table)} steps of {table.name} draw noise; {remedy}."
        )
    return noisy[: int(number)] if end == "first" else noisy[-int(number) :]
