"""What the arguments of rewards hold, as digests: values as they are, files and folders by what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError
from rlcm.paths import existing, local
from rlcm.rewards.build import names_files
from rlcm.rewards.user import signature_of
from rlcm.runs import digests

MOST_FILES = 1000
"""Of a folder's files so many are read, spread over it; of the others the name and the size count."""
_MOST_NAMES = 200_000
_NOBODYS = {".DS_Store", "Thumbs.db", "desktop.ini", "__pycache__"}
"""What systems leave in folders that are looked at."""


def of_argument(value: Any, output: Path) -> str:
    """Return the digest of an argument, or of the file or folder that it names; no argument is kept itself.

    Args:
        value: of JSON. Texts within lists and dicts may name files, too.
        output: the folder that runs are put into. What is in it does not count, and a folder that it is in is not read.
    """
    if isinstance(value, str):
        return _of_text(value, output)
    if isinstance(value, (list, dict)):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        found = {str(key): of_argument(one, output) for key, one in inside}
        if any(not digest.startswith("value ") for digest in found.values()):
            return f"files {digests.of_value(found)}"
    return of_name(value)


def of_name(value: Any) -> str:
    """Return the digest of an argument itself, whatever it names."""
    return f"value {digests.of_value(value)}"


def of_beginning(value: Any, output: Path) -> str:
    """Return the digest of how files begin that are only ever appended to, and of the name of a folder: more of it is the same.

    Args:
        value, output: as `of_argument`.
    """
    begun = []
    for name in [value] if isinstance(value, str) else value:
        try:
            with open(local(name, "rewards"), "rb") as file:
                begun.append(digests.of_bytes(file.readline()))
        except IsADirectoryError:
            begun.append(digests.of_value(name))
        except (OSError, TypeError, ConfigError):
            return of_argument(value, output)
    return f"begins {digests.of_value(begun)}"


def defaults(target: Any) -> dict[str, Any]:
    """Return the defaults of a reward's parameters that name files, as texts by their names."""
    signature = signature_of(target)
    found = {} if signature is None else signature.parameters
    given = {name: p.default for name, p in found.items() if names_files(p) or isinstance(p.default, Path)}
    return {name: os.fspath(value) for name, value in given.items() if isinstance(value, (str, os.PathLike))}


def _of_text(value: str, output: Path) -> str:
    try:
        place = existing(value, "rewards")
        if place is not None and place.is_file():
            return f"file {digests.of_file(place)}"
        if place is not None and (place / "config.json").is_file():
            inside = {str(file.relative_to(place)): file for file in sorted(place.rglob("*")) if file.is_file()}
            return f"folder {digests.of_value(digests.of_files(inside))}"  # a model: all of it
        if place is not None and place.is_dir() and not output.is_relative_to(place.resolve()):
            return f"folder {digests.of_value(_read(place, output))}"
    except (OSError, ValueError, ConfigError):  # a text, or what cannot be read
        pass
    return of_name(value)


def _read(folder: Path, output: Path) -> dict[str, str]:
    """Return the size of every file in a folder, by its path there, and of MOST_FILES of them a digest of some of what they hold.

    Raises:
        ValueError: if it has more files than can be looked at.
    """
    files = sorted(_files(folder, output))
    found = {str(file.relative_to(folder)): str(file.stat().st_size) for file in files}
    for file in files[:: -(-len(files) // MOST_FILES) or 1]:
        found[str(file.relative_to(folder))] += f" {digests.of_pieces(file)}"
    return found


def _files(folder: Path, output: Path) -> Iterator[Path]:
    count = 0
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = [name for name in folders if name not in _NOBODYS and (here / name).resolve() != output]
        for name in names:
            count += 1
            if count > _MOST_NAMES:
                raise ValueError(f"{folder} has too many files")
            if name not in _NOBODYS and (here / name).is_file():
                yield here / name
