"""Writing what was measured into the pages of the documentation: tables, and texts between two marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.shared.places import DOCS


def fill(page: str, name: str, text: str) -> None:
    """Put a text between `<!-- name -->` and `<!-- /name -->` of a page in docs/.

    Raises:
        ValueError: if the page has no such place.
    """
    put_between(DOCS / page, f"<!-- {name} -->", f"<!-- /{name} -->", text.rstrip())


def put_between(file: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two lines of a file, each on a line of its own.

    Raises:
        ValueError: if the file has no such lines.
    """
    file.write_text(replaced(file.read_text(encoding="utf-8"), begin, end, text, str(file)), encoding="utf-8")


def replaced(page: str, begin: str, end: str, text: str, name: str = "the page") -> str:
    """Return a page with a text between two of its lines.

    Raises:
        ValueError: if the page, whose name the message gives, has no such lines.
    """
    head, found, rest = page.partition(f"{begin}\n")
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{name} has no place for {begin!r}")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def row(cells: Iterable[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |\n"


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table."""
    return row(head) + row(["---"] * len(head)) + "".join(map(row, rows))


def spread(values: Sequence[float], digits: str) -> str:
    """Return a mean with the lowest and highest."""
    return f"{mean(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"
