"""What the arguments of rewards hold, as digests: values as they are, files and folders by what is in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError, UnreadableFileError
from rlcm.paths import existing
from rlcm.rewards.build import named_places
from rlcm.rewards.user import signature_of
from rlcm.runs import digests
from rlcm.runs.files import open_file

MOST_FILES = 1000
"""Of a folder's files so many are read, spread over it; of the others the name and the size count."""
UNREAD = "unread "
"""How the digest of a folder begins that is known by its name, since more is in it than a reward's."""
_NAMES = ("value ", UNREAD)
_MOST_NAMES = 200_000
_LONGEST_LINE = 1 << 16
_LEFT_BEHIND = {"Thumbs.db", "desktop.ini", "__pycache__"}
"""What systems leave in folders that are looked at; so are names that begin with a dot."""


def of_argument(value: Any, output: Path, is_declared: bool = False) -> str:
    """Return the digest of an argument, or of the file or folder that it names; no argument is kept itself.

    Args:
        value: of JSON. Texts within lists and dicts may name files, too.
        output: the folder that runs are put into; a folder that it is in is not read.
        is_declared: whether the reward says that it takes paths there. Of other texts, one that is a word and no path may name a
            file, but no folder.

    Raises:
        OSError: if what a declared path names may not be read.
    """
    if isinstance(value, str):
        return _of_text(value, output, is_declared)
    if isinstance(value, (list, dict)):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        looked_at = {str(key): one for key, one in inside if is_declared or _is_path(one) or isinstance(one, (list, dict))}
        found = {key: of_argument(one, output, is_declared) for key, one in looked_at.items()}
        if any(not digest.startswith(_NAMES) for digest in found.values()):
            return f"files {digests.of_value(found if is_declared else [value, found])}"
    return of_name(value)


def of_name(value: Any) -> str:
    """Return the digest of an argument itself, whatever it names."""
    return f"value {digests.of_value(value)}"


def of_beginning(value: Any, output: Path) -> str:
    """Return the digest of how files begin that are only ever appended to: more of them is the same.

    Of folders, and where a file is not there or has not a whole line yet, it is that of the argument itself.

    Args:
        value, output: as `of_argument`.
    """
    names = [value] if isinstance(value, str) else [*value.values()] if isinstance(value, dict) else value
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return of_argument(value, output)
    begun = []
    for name in names:
        try:
            place = existing(name, "rewards")
            if place is None:
                return of_name(value)
            with open_file(place) as file:
                line = file.readline(_LONGEST_LINE)
        except (OSError, ConfigError, UnreadableFileError):
            return of_name(value)
        if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            return of_name(value)
        begun.append(digests.of_bytes(line))
    return f"begins {digests.of_value(begun)}"


def defaults(target: Any, output: Path) -> dict[str, str]:
    """Return the digests of what the defaults of a reward's parameters name, where that is there, by the parameters' names."""
    signature, declared = signature_of(target), named_places(target)
    parameters = {} if signature is None else signature.parameters
    found = {}
    for name, parameter in parameters.items():
        value = os.fspath(parameter.default) if isinstance(parameter.default, os.PathLike) else parameter.default
        if isinstance(value, str) and (name in declared or isinstance(parameter.default, os.PathLike)):
            found[name] = of_argument(value, output, is_declared=True)
    return {name: digest for name, digest in found.items() if not digest.startswith(_NAMES)}


def _is_path(value: Any) -> bool:
    """Return whether a value is a path rather than a word."""
    return isinstance(value, str) and ("/" in value or value.startswith(("~", ".")))


def _of_text(value: str, output: Path, is_declared: bool) -> str:
    try:
        place = existing(value, "rewards")
        if place is not None and place.is_file():
            return f"file {digests.of_file(place)}"
        if place is not None and place.is_dir():
            if _is_everybodys(place, output):
                return f"{UNREAD}{digests.of_value(value)}"
            if (place / "config.json").is_file():  # a model: all of it
                inside = {str(file.relative_to(place)): file for file in sorted(place.rglob("*")) if file.is_file()}
                return f"folder {digests.of_value(digests.of_files(inside))}"
            if is_declared or _is_path(value):
                return f"folder {digests.of_value(_read(place))}"
    except (ValueError, ConfigError):  # a text, or more than can be looked at
        pass
    except OSError:
        if is_declared:
            raise
    return of_name(value)


def _is_everybodys(place: Path, output: Path) -> bool:
    """Return whether a folder has more in it than a reward's: the runs, the working directory, or the folder of a user."""
    home = Path(os.path.expanduser("~"))
    inside = (output, Path.cwd(), home, Path(tempfile.gettempdir()))
    return any(other.resolve().is_relative_to(place.resolve()) for other in inside)


def _read(folder: Path) -> dict[str, str]:
    """Return the size of every file in a folder, by its path there, and of MOST_FILES of them a digest of some of what they hold.

    Raises:
        OSError: if some of it may not be read.
        ValueError: if it has more files than can be looked at.
    """
    files = dict(sorted((str(file.relative_to(folder)), file) for file in _files(folder)))
    count = min(MOST_FILES, len(files))
    names = list(files)
    chosen = {name: files[name] for name in (names[i * len(names) // count] for i in range(count))}
    looked_at = digests.of_files(chosen, digests.of_pieces)
    return {name: f"{file.stat().st_size} {looked_at.get(name, '')}" for name, file in files.items()}


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those in it, also through links, each folder once."""

    def refuse(error: OSError) -> None:
        raise error

    count, seen = 0, set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(root)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = [name for name in folders if _counts(name)]
        for name in filter(_counts, names):
            count += 1
            if count > _MOST_NAMES:
                raise ValueError(f"{folder} has too many files")
            if (here / name).is_file():
                yield here / name


def _counts(name: str) -> bool:
    return not name.startswith(".") and name not in _LEFT_BEHIND
