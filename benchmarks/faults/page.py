"""Writing what was measured into the pages of the documentation."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def fill(page: str, name: str, text: str) -> None:
    """Put a text between `<!-- name -->` and `<!-- /name -->` of a page in docs/.

    Raises:
        ValueError: if the page has no such place.
    """
    file = DOCS / page
    head, begin, rest = file.read_text().partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(f"<!-- /{name} -->\n")
    if not begin or not end:
        raise ValueError(f"{file} has no place for {name!r}")
    file.write_text(f"{head}{begin}{text.rstrip()}\n{end}{tail}")
