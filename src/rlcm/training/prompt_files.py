"""What the text of a file of prompts says: one prompt a line, JSON lines or a JSON list; and what else a file may be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from rlcm.text_files import lines_of

LIKE = '{"prompt": "a fox"}'
"""An entry of a file, as errors show it."""
FORMS = (
    "Files of prompts are .txt (one a line; a file without an ending is read so, too), .jsonl (one object a line, "
    f"{LIKE}) or .json (a list of texts or of such objects)"
)
"""What can be read, as errors say it."""

Row = tuple[str, dict[str, Any]]
"""A prompt and what stood beside it."""


def refuse_foreign(text: str) -> None:
    """Do nothing if a text may hold prompts.

    Raises:
        ValueError: if it is what a program wrote that was asked for a file of prompts; the message says what, and what to do.
    """
    head = text.lstrip("\ufeff \t\n")[:40].lower()
    for beginning, what in _BEGINNINGS.items():
        if head.startswith(beginning):
            raise ValueError(f"which should hold prompts, {what}")
    if all(re.search(rf"^\s*{mark} .*\S", text, re.MULTILINE) for mark in ("<<<<<<<", ">>>>>>>")):
        raise ValueError(
            "which should hold prompts, holds both sides of a conflict of Git (<<<<<<< and >>>>>>>); keep one of them"
        )


def _read_lines(text: str) -> list[Row]:
    lines = [line for _, line in _numbered(text)]
    if lines and (_is_json(text, (list, dict)) or _is_nearly_json(lines)):
        raise ValueError(
            "which is read as one prompt a line, holds JSON; let its name end in .json, or in .jsonl for one object a line"
        )
    if columns := _columns(text):
        raise ValueError(f"which is read as one prompt a line, is a table with the columns {', '.join(columns[:5])}. {_COLUMN}")
    return [(line, {}) for line in lines]


def _read_json_lines(text: str) -> list[Row]:
    rows = []
    for number, line in _numbered(text):
        try:
            entry = json.loads(line, object_pairs_hook=_without_doubles)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {line[:80]!r} is not like {LIKE} ({_why(error)}); mend the line") from error
        rows.append(row(entry, f"line {number}"))
    return rows


def _read_json(text: str) -> list[Row]:
    try:
        found = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        if _is_json(next((line for _, line in _numbered(text)), ""), dict):
            raise ValueError("which has one object a line, is JSON lines; let its name end in .jsonl") from error
        raise ValueError(f"which must hold a list such as [{LIKE}], is no JSON ({_why(error)}); mend it") from error
    if not isinstance(found, list):
        what = f"an object with {', '.join(list(found)[:5])}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ValueError(f"which must hold a list such as [{LIKE}], holds {what}; put the list alone into it")
    return [row(entry, f"entry {n}") for n, entry in enumerate(found, 1)]


def _numbered(text: str) -> list[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers."""
    # Where files were joined, the mark of the second stands before one of its lines.
    lines = [line.strip().removeprefix("\ufeff").strip() for line in lines_of(text)]
    return [(number, line) for number, line in enumerate(lines, 1) if line]


def _why(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


def row(entry: Any, place: str) -> Row:
    """Return the prompt and the metadata of an entry, a text or an object.

    Raises:
        ValueError: if it is neither, or its `prompt` is no text.
    """
    if isinstance(entry, str):
        return entry.strip(), {}
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f"{place}: {json.dumps(entry)[:80]} is not like {LIKE}: its `prompt` must be a text")
    return entry["prompt"].strip(), {key: value for key, value in entry.items() if key != "prompt"}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _columns(text: str) -> list[str]:
    """Return the columns of a table of comma- or tab-separated values that has one of prompts; nothing for lines of prompts."""
    lines = [line for line in lines_of(text.removeprefix("\ufeff")) if line.strip()]
    for mark in (",", ";", "\t"):
        heads = [cell.strip("\"'") for cell in lines[0].split(mark)] if lines else []
        names = all(re.fullmatch(r"[A-Za-z_][\w.-]*", head) for head in heads)  # after a comma of a prompt comes a space
        if len(heads) > 1 and names and {head.lower() for head in heads} & {"prompt", "prompts", "caption"}:
            return heads if len(lines) > 1 and all(line.count(mark) >= len(heads) - 1 for line in lines) else []
    return []


def _is_nearly_json(lines: list[str]) -> bool:
    """Return whether lines were meant as JSON, or as a list of a program: objects, brackets alone, or texts with commas after them."""
    if any(re.match(r'\{\s*"', line) for line in lines) or re.match(r"""\[\s*(["'{]|$)""", lines[0]):
        return True
    quoted = [re.fullmatch(r"""(["']).*\1,?""", line) for line in lines]
    return all(quoted) and any(line.endswith(",") for line in lines)


def _is_json(text: str, kinds: type | tuple[type, ...]) -> bool:
    try:
        return isinstance(json.loads(text), kinds)
    except (ValueError, RecursionError):
        return False


READERS: dict[str, Callable[[str], list[Row]]] = {
    "": _read_lines, ".txt": _read_lines, ".text": _read_lines, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines,
    ".json": _read_json,
}  # fmt: skip
"""How files are read, by their ending in small letters."""
_BEGINNINGS = {
    "version https://git-lfs": "is a pointer of Git LFS, not the file that it stands for; fetch that with `git lfs pull`",
    **dict.fromkeys(
        ("<!doctype ", "<html>", "<html ", "<?xml "), "is a web page or XML; save its text alone, one prompt a line"
    ),
    "{\\rtf": "is a document of a word processor (RTF); save it as plain text, one prompt a line",
}
"""What files that are no prompts begin with, in small letters, and what to do then."""
_COLUMN = "Save its column of prompts as a .txt file, or its rows as .jsonl"
_WHOLE = "Write its list into the configuration itself, under `prompts:`, or save it as .json."
OTHERS = {
    **dict.fromkeys(
        (".csv", ".tsv", ".xls", ".xlsx", ".ods", ".parquet", ".arrow", ".feather", ".db", ".sqlite"),
        f"{_COLUMN}.",
    ),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".xml", ".ini"), _WHOLE),
    **dict.fromkeys((".gz", ".zip", ".xz", ".bz2", ".zst", ".tar", ".tgz", ".7z"), "Unpack it first."),
    **dict.fromkeys(
        (".doc", ".docx", ".odt", ".rtf", ".pdf", ".html", ".htm"), "Save its text as a .txt file, one prompt a line."
    ),
}
"""What to do about other kinds of files."""
