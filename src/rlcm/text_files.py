"""Text files as the project reads them: in UTF-8, or with the mark that says another encoding, cut at line feeds alone."""

from __future__ import annotations

import codecs
from pathlib import Path

# UTF-32 comes first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path) -> str:
    r"""Return a text file without the mark at its beginning, its lines ended by `\n`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no text; the message says why and what to do.
    """
    data = path.read_bytes()
    encoding = marked(data) or "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"it is not a text file in UTF-8 (line {line}: {error.reason}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("it is not a text file, since it holds NUL bytes; if it is text, save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def marked(data: bytes) -> str | None:
    """Return the encoding other than UTF-8 that the mark at the beginning of a text says; None where there is none."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def lines_of(text: str) -> list[str]:
    r"""Return the lines of a text.

    `str.splitlines` cuts at more than line feeds, such as `\x0b`, `\x85` and `\u2028`, which may stand inside a prompt.
    """
    return text.split("\n")
