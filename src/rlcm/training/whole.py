"""Whether the config.yaml of a run has all that the run wrote into it: with defaults in place of it, it would be another run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError
from rlcm.paths import shown
from rlcm.runs.own_folder import is_run
from rlcm.runs.weights import listed
from rlcm.runs.whole_config import is_cut
from rlcm.settings import Settings
from rlcm.text_files import read_text
from rlcm.training.values import read_file

FILE = "config.yaml"


def is_of_run(file: Path) -> bool:
    """Return whether a file is the configuration that a run wrote into its own folder."""
    return file.name == FILE and is_run(file.parent)


def read_whole(file: Path, kind: type[Settings], names: Sequence[str]) -> dict[str, Any]:
    """Return the nested values of the configuration of a run, if it has all that was written into it; as `read_file`.

    Args:
        names: of all settings.

    Raises:
        MissingFileError: if the file is not there.
        ConfigError: if it is damaged, was cut short, or lines were taken out of it.
    """
    try:
        values = read_file(file, kind)
    except ConfigError as error:
        if not is_run(file.parent):
            raise
        raise ConfigError(f"{error}\nA run wrote this file whole; put it back from a copy.") from None
    if not is_cut(read_text(file), values):
        return values
    missing = [name for name in names if not _has(values, name.split("."))]
    what = listed(missing, 3) if missing else "some that this version of rlcm does not know"
    own = (
        f"to use what is left of it as a configuration of your own, copy it out of {shown(file.parent)}"
        if is_run(file.parent)
        else f"a configuration of your own is given by its file, {shown(file)}, not by its folder"
    )
    raise ConfigError(
        f"{shown(file)} is not whole. A run writes all of its settings into it, and these are missing: {what}. The file was cut short, "
        f"or lines were taken out. Put it back from a copy, or write the missing lines into it (`rlcm settings` prints all, with their "
        f"defaults); {own}."
    )


def _has(values: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
