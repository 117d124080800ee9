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
from rlcm.text_files import read_text

FILE = "config.yaml"


def is_of_run(file: Path) -> bool:
    """Return whether a file is the configuration that a run wrote into its own folder."""
    return file.name == FILE and is_run(file.parent)


def require_whole(file: Path, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Do nothing if the configuration of a run has all that was written into it.

    Args:
        values: that the file holds.
        names: of all settings.

    Raises:
        ConfigError: if it was cut short, or lines were taken out of it.
    """
    if not is_cut(read_text(file), values):
        return
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
