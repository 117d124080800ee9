"""Why an operating system refuses to write a file, and what to do about it: a sentence for each of its reasons."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rlcm.errors import RLCMError, RunDirectoryError
from rlcm.runs.files import why_no_file

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_LOST = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP)
_MANY = (errno.EMFILE, errno.ENFILE)
_OF_SYSTEM = re.compile(r"\(os error (\d+)\)")
"""How libraries that are written in Rust give the number of an operating system's error."""


@contextmanager
def disk_errors(path: Path, elsewhere: str = "choose another folder", then: str = "") -> Iterator[None]:
    """Turn an operating system's refusal to write into a RunDirectoryError that says what to do.

    Libraries written in Rust (safetensors, tokenizers) have it as an error of their own.

    Args:
        path: what is written.
        elsewhere: how another place is chosen.
        then: what to do after that.
    """
    try:
        yield
    except RLCMError:
        raise
    except Exception as error:
        number = None if isinstance(error, OSError) and error.errno else _OF_SYSTEM.search(str(error))
        refused = error if number is None else OSError(int(number[1]), os.strerror(int(number[1])))
        if not isinstance(refused, OSError):
            raise
        raise RunDirectoryError(f"cannot write {path}: {in_words(refused, path, elsewhere, then)}.") from error


def require_writable(folder: Path) -> None:
    """Do nothing if a file can be made in a folder, or in the nearest one above it that is there.

    Raises:
        RunDirectoryError: if the operating system refuses it.
    """
    with disk_errors(folder), tempfile.TemporaryFile(dir=_lowest(folder)):
        pass


def run_errors(path: Path) -> AbstractContextManager[None]:
    """`disk_errors` for what a training writes, which can go on."""
    return disk_errors(
        path,
        "choose another folder with output=... (if the run has begun, move its folder there)",
        ", then go on with `rlcm train --resume RUN`",
    )


def in_words(error: OSError, path: Path, elsewhere: str, then: str = "") -> str:
    """Return why a file could not be written and what to do, without a full stop at its end.

    Args:
        error: of the operating system.
        path: of the file or folder.
        elsewhere: how another place is chosen, such as "choose another folder".
        then: what to do after that, such as ", then try again".
    """
    place = _of(error, path)
    if error.errno == errno.ENOENT:
        return _gone(place, elsewhere, then)
    return f"{_reason(error, place, elsewhere)}{then}"


def _reason(error: OSError, place: Path, elsewhere: str) -> str:
    reason = error.strerror or str(error)
    kept = f"{reason}. What was written before is intact; "
    if error.errno in _FULL:
        return f"{kept}free some space or {elsewhere}"
    if error.errno in _FORBIDDEN:
        return f"{kept}{_allowed(place)}, or {elsewhere}"
    if error.errno == errno.EROFS:
        return f"{kept}{elsewhere}, on a file system that can be written"
    if error.errno in _LOST:
        return f"{reason}. The disk, or the connection to it, has failed; mend that first, or {elsewhere}"
    if error.errno == errno.ENAMETOOLONG:
        return f"{reason}. Take shorter names, or {elsewhere}, with a shorter path"
    if error.errno in _IN_THE_WAY:
        return f"{reason}. {_obstacle(place)} is in the way; move it, or {elsewhere}"
    if error.errno in _MANY:
        return f"{kept}close other programs, or allow more open files with `ulimit -n 4096`"
    return f"{kept}{elsewhere}"


def _of(error: OSError, path: Path) -> Path:
    """Return the file that the operating system named, where that lies at or below the one that was to be written."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    below = [Path(name) for name in names if path in (Path(name), *Path(name).parents)]
    return below[-1] if below else path


def _gone(place: Path, elsewhere: str, then: str) -> str:
    try:
        os.getcwd()
    except OSError:
        if not place.is_absolute():
            return "the working directory is gone: it was deleted, or moved away. Go into a folder that is there"
    missing = [folder for folder in place.parents if not os.path.isdir(folder)]
    first = missing[-1] if missing else place
    if os.path.islink(first):
        return f"{first} is a link to {os.readlink(first)}, which is not there. Make that, or take the link away{then}"
    if not missing:
        return f"No such file or directory. Another program may have taken it away; {elsewhere}{then}"
    return (
        f"the folder {first} is not there any more: it was deleted, renamed or unmounted. Put it back under that name{then}; "
        "what was deleted with it is lost"
    )


def no_entry(place: Path) -> str | None:
    """Return that a folder above a place may not be entered, and what to do, without a full stop at its end; None where all may."""
    shut = next(
        (part for part in reversed(place.absolute().parents) if os.path.isdir(part) and not os.access(part, os.X_OK)), None
    )
    return f"the folder {shut} may not be entered by you; let its owner allow it" if shut else None


def _lowest(place: Path) -> Path:
    """Return the nearest folder above a place that is there, or the place itself where it is."""
    return next((part for part in (place, *place.parents) if os.path.lexists(part)), place)


def _allowed(place: Path) -> str:
    """Return what has to be allowed for a file: new ones are written beside the old ones, which takes the folder."""
    folder = _lowest(place.parent)
    is_open = os.access(folder, os.W_OK | os.X_OK) and os.path.lexists(place)
    return no_entry(place) or f"make {place if is_open else folder} writable for you"


def _obstacle(place: Path) -> str:
    """Return what stands where a file or one of its folders belongs."""
    for part in (*reversed(place.parents), place):
        if part != place and os.path.lexists(part) and not os.path.isdir(part):
            return f"{part} ({why_no_file(part) or 'it is a file'})"
    return str(place)
