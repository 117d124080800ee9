"""metrics.jsonl: a line a round, read and cut back one line at a time; lines that cannot be read are left out and counted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rlcm.errors import UnreadableFileError
from rlcm.runs.files import MEGABYTE, is_there, open_file, writable

LONGEST = MEGABYTE
"""Bytes of a line."""
MOST = 64 * MEGABYTE
"""Bytes that are read of a file, its last ones, to look at a run."""
DAMAGED = 10_000
"""Lines that cannot be read, after which a file is not read on."""
LAST_ROUND = 2**53


class Damage:
    """Counts the lines that cannot be read."""

    def __init__(self, most: float = math.inf) -> None:
        """Count, and give a file up after `most` of them."""
        self.most, self.count = most, 0
        self.first: list[str] = []

    def add(self, number: int) -> None:
        """Count a line."""
        self.count += 1
        if self.count <= 3:
            self.first.append(str(number))

    def __str__(self) -> str:
        """Return them in words; nothing where there are none."""
        if not self.count:
            return ""
        which = ", ".join(self.first) + ", ..." * (self.count > 3)
        return f"{self.count} line{'s' * (self.count > 1)} of metrics.jsonl that cannot be read (line {which})"


def rows(file: BinaryIO, damage: Damage) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield every line that can be read, and what it says: numbers by name, one of them the round, whole and from 0.

    Args:
        file: open, to be read to its end.
        damage: is told of the others; empty lines do not count.
    """
    number = 0
    while damage.count < damage.most and (line := file.readline(LONGEST)):
        number += 1
        whole = line.endswith(b"\n") or len(line) < LONGEST
        while not whole:
            rest = file.readline(LONGEST)
            whole = rest.endswith(b"\n") or len(rest) < LONGEST
            line = b"{"  # no line of a run is so long
        row = _parse(line)
        if row is not None:
            yield line, row
        elif line.strip():
            damage.add(number)


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rounds' metrics, of a very long file those of its end, and what could not be read, in words.

    Raises:
        UnreadableFileError: if it is there and no file that can be read.
    """
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    damage = Damage(DAMAGED)
    if not is_there(path):
        return found, left_out
    with open_file(path) as file:
        try:
            if os.fstat(file.fileno()).st_size > MOST:
                file.seek(-MOST, os.SEEK_END)
                _skip_line(file)
                left_out.append(f"All of metrics.jsonl but its last {MOST // MEGABYTE} MB")
            found = [row for _, row in rows(file, damage)]
            if damage.count >= DAMAGED:
                left_out.append("What comes after these in metrics.jsonl")
        except OSError as error:
            raise UnreadableFileError(path, error.strerror or str(error)) from error
    return found, [*filter(None, [str(damage)]), *left_out]


def _skip_line(file: BinaryIO) -> None:
    while (line := file.readline(LONGEST)) and not line.endswith(b"\n"):
        pass


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    number = row.get("round") if isinstance(row, dict) else None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < LAST_ROUND or number % 1:
        return None
    numbers = {writable(key): value for key, value in row.items() if isinstance(value, (int, float))}
    return numbers | {"round": int(number)}
