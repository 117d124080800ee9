"""Paths as people type them, by one rule for all of them, and commands that can be pasted into a terminal."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from rlcm.errors import ConfigError, UsageError

Typed = str | os.PathLike[str]
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes, on the usual file systems."""
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{\w+\})")


def local(typed: Typed, setting: str) -> Path:
    """Return the file or folder that a person means.

    `~` and `~user` are the folders of users, and what is relative counts from the working directory. Environment variables are
    left to the shell: a configuration is kept, shown and published, and a variable may hold a secret.

    Args:
        typed: what was typed; a relative path stays relative.
        setting: where it was typed, for the error.

    Raises:
        ConfigError: if it is no path: of an unknown user, with a variable in it, too long, or not to be written down.
    """
    text = os.fspath(typed)
    path = os.path.expanduser(text)
    if "\0" in path or not _is_utf8(path):
        raise ConfigError(f"{setting}={text!r} is not a path; give one that can be written in UTF-8, without a NUL.")
    if len(path.encode()) > LONGEST_PATH or any(len(name.encode()) > LONGEST_NAME for name in path.split("/")):
        raise ConfigError(
            f"{setting}={text[:80]!r}... is not a path: a name is longer than {LONGEST_NAME} bytes, or all of it than {LONGEST_PATH}."
        )
    if text.startswith("~") and path.startswith("~"):
        raise ConfigError(
            f"{setting}={text!r}: there is no user {text[1:].partition('/')[0]!r}, whose folder this would be; correct the name, or "
            f"write ./{text} for a folder of that name."
        )
    if "$" in path and (variable := _VARIABLE.search(_missing(path))):
        raise ConfigError(
            f"{setting}={text!r}: the environment variable {variable[0]} is not read here; write the path itself, or ~ for your "
            "own folder. On the command line the shell puts a variable's value in, unless it stands in single quotes."
        )
    return Path(path)


def _missing(path: str) -> str:
    """Return what of a path is not there: without the folders at its beginning that are, whatever their names are made of."""
    parts = Path(path).parts
    there = next((n for n in range(len(parts), 0, -1) if os.path.exists(os.path.join(*parts[:n]))), 0)
    return "/".join(parts[there:])


def given_folder(run: object) -> Path:
    """Return the folder of a run as Python passes it: a text, a path, or what has one as its `path`, such as a `Result`.

    Raises:
        ConfigError: if it is none of them.
    """
    if not isinstance(run, (str, os.PathLike)):
        run = getattr(run, "path", run)
    if not isinstance(run, (str, os.PathLike)) or not os.fspath(run):
        raise ConfigError(f"run={run!r} names no folder; give that of a run, such as 'runs/demo'.")
    return local(os.fspath(run), "run")


def existing(typed: str, setting: str) -> Path | None:
    """Return the absolute path of the file or folder that a name means, None where there is none: it may mean something else.

    Raises:
        ConfigError: as `local`, where the name can be nothing but a path.
    """
    if not typed or "\0" in typed:
        return None
    there = os.path.exists(os.path.expanduser(typed))
    if there or (typed.startswith(("~", ".", "/", "$")) and "/" in typed):
        path = local(typed, setting).absolute()
        return path if there else None
    return None


def require_working_directory() -> None:
    """Do nothing if there is a working directory.

    Raises:
        UsageError: if it was deleted, or cannot be looked up.
    """
    try:
        os.getcwd()
    except OSError as error:
        known = os.environ.get("PWD", "")
        again = (
            f"if it was made again, enter it again with `{command('cd', known)}`"
            if os.path.isdir(known)
            else "such as by `cd ~`"
        )
        raise UsageError(
            f"the working directory {known!r} is not there any more ({error.strerror}): it was deleted, or moved away. Go into a "
            f"folder that is there, {again}, and type the command once more."
        ) from None


def shown(path: Path) -> str:
    """Return a path as short as it works in the working directory, as an argument of a command."""
    try:
        text = str(path.relative_to(Path.cwd())) if path.is_absolute() else str(path)
    except (ValueError, OSError):  # somewhere else, or the working directory is gone
        text = str(path)
    return f"./{text}" if text.startswith(("-", "~")) else text


def command(*words: Typed) -> str:
    """Return a command as it can be pasted into a terminal; a Path is written as short as it works there."""
    return shlex.join(shown(word) if isinstance(word, Path) else os.fspath(word) for word in words)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a file name that are no text
        return False
    return True
