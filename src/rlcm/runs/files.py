"""Files that anybody may have put there: read where they are regular files, of a bearable size, with plain values in them.

What stands in a file's place is looked at before it is opened: to open a pipe can take for ever.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rlcm.errors import UnreadableFileError
from rlcm.text_files import marked
from rlcm.yaml_text import meant, read_yaml

MEGABYTE = 1_000_000
MOST = 64 * MEGABYTE
"""Bytes of a file that is read as a whole, at most, where nothing else is said."""
MOST_YAML = 1 * MEGABYTE
"""Of a configuration: reading YAML takes ten seconds a megabyte."""
DEEPEST, VALUES, VALUES_YAML = 40, 1_000_000, 100_000
"""How deeply values may be nested, and how many there may be of them, those that YAML repeats counted each time."""
WHOLE = 2**1000
"""Whole numbers are smaller; larger ones have more digits than Python writes."""
_KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a pipe"),
    (stat.S_ISSOCK, "it is a socket"),
    (stat.S_ISBLK, "it is a device"),
    (stat.S_ISCHR, "it is a device"),
)
_LINKS = {errno.ENOENT: "it is a link that leads nowhere", errno.ELOOP: "it is a link that leads back to itself"}


def is_there(path: Path) -> bool:
    """Return whether something of that name is there, be it a link that leads nowhere."""
    return os.path.lexists(path)


def why_no_file(path: Path) -> str:
    """Return what stands in a regular file's place, such as `it is a pipe`; nothing where it is one."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path) and error.errno in _LINKS:
            return _LINKS[error.errno]
        return error.strerror or str(error)
    except ValueError as error:  # a name that no file can have
        return str(error)
    if stat.S_ISREG(mode):
        return ""
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "it is no file")


def open_file(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file to read its bytes; it never waits.

    Args:
        follow: whether it may be a link.

    Raises:
        UnreadableFileError: if it is none, or may not be read.
    """
    why = "it is a link" if not follow and os.path.islink(path) else why_no_file(path)
    if why:
        raise UnreadableFileError(path, why)
    more = getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | more))  # noqa: SIM115 (it is returned)
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it took the file's place a moment ago
        file.close()
        raise UnreadableFileError(path, "it is no file")
    return file


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """Return a regular file of at most `most` bytes.

    Raises:
        UnreadableFileError: if it is none, is longer, or may not be read.
    """
    with open_file(path) as file:
        try:
            data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
        except OSError as error:
            raise UnreadableFileError(path, error.strerror or str(error)) from error
    if data is None or len(data) > most:
        raise UnreadableFileError(path, f"it is longer than {most // MEGABYTE} MB")
    return data


def read_text(path: Path, most: int = MOST) -> str:
    """Return a text file in UTF-8, or in what a mark at its beginning says; errors as `read_bytes`, and where it is no text."""
    data = read_bytes(path, most)
    encoding = marked(data)
    try:
        return data.decode(encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        what = f"not a text file: byte {error.start + 1} is no {(encoding or 'utf-8').upper()}"
        raise UnreadableFileError(path, what) from error


def read_end(path: Path, most: int) -> str:
    """Return the last lines of a text, whole ones, at most so many bytes; what is no UTF-8 is replaced; links are not followed.

    Raises:
        UnreadableFileError: as `read_bytes`.
    """
    with open_file(path, follow=False) as file:
        try:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            text = file.read(most).decode("utf-8", "replace")
        except OSError as error:
            raise UnreadableFileError(path, error.strerror or str(error)) from error
    return text if size <= most else text.partition("\n")[2]


def read_json(path: Path, most: int = MOST) -> Any:
    """Return the plain value of a JSON file; errors as `read_text`, and where it is damaged."""
    try:
        return plain(json.loads(read_text(path, most)))
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(path, "it is damaged") from error


def parse_yaml(text: str) -> Any:
    """Return the plain value of a YAML text.

    Raises:
        ValueError: whatever is wrong with it.
    """
    return plain(meant(read_yaml(text)), VALUES_YAML)


def stamp(path: Path) -> tuple[int, int] | None:
    """Return when a file or folder changed last, in nanoseconds, and its size; None where that is not known."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def plain(value: Any, most: int = VALUES) -> Any:
    """Return a value of JSON or YAML with mappings of texts, lists, texts that can be written, numbers, truth values and None only.

    Args:
        most: how many values there may be.

    Raises:
        ValueError: if it is nested too deeply, endless, or has a whole number too large to be written.
    """
    left = most

    def made(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth < 0:
            raise ValueError("it is nested too deeply, or holds too much")
        if isinstance(value, dict):
            return {key if isinstance(key, str) else str(key): made(one, depth - 1) for key, one in value.items()}
        if isinstance(value, (list, tuple, set)):
            return [made(one, depth - 1) for one in value]
        if isinstance(value, int) and abs(value) >= WHOLE:
            raise ValueError("it has a whole number too large to be written")
        if value is None or isinstance(value, (bool, int, float)):
            return value
        text = value if isinstance(value, str) else str(value)
        return text if text.isascii() else writable(text)

    return made(value, DEEPEST)


def writable(text: str) -> str:
    """Return a text with a question mark in place of each half of a character, which no file and no page can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def printable(name: str | Path) -> str:
    """Return the name of a file as it can be printed: bytes that are no UTF-8, and control characters, are written as \\x..."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(one if ord(one) >= 32 and ord(one) != 127 else f"\\x{ord(one):02x}" for one in text)


def below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder, a folder before what is in it; links are not followed, what cannot be read is passed over."""
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in found:
            yield entry
            if entry.is_dir(follow_symlinks=False):  # which asks nothing anew
                waiting.append(entry.path)
