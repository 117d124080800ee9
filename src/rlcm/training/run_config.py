"""The configuration of a run that is there already: read in one place, and whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlcm._version import __version__
from rlcm.errors import ConfigError, MissingFileError, UnreadableFileError
from rlcm.paths import local, shown
from rlcm.report.run import DEPENDS_ON, WEIGHTS
from rlcm.runs.files import read_json, read_text
from rlcm.runs.whole_config import written_by
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.explaining import names_of
from rlcm.training.values import apply
from rlcm.training.whole import FILE, read_whole


def run_config(run: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration of a run, with `key=value` changes applied in order.

    A person may have edited the file: values may be others, and comments and settings may have been added.

    Raises:
        MissingFileError: if the folder is no run's.
        ConfigError: if settings are missing that the run wrote, if the file is damaged or does not fit this version, or if a
            change is wrong.
    """
    file = run / FILE
    if not file.is_file():
        raise MissingFileError(f"{run} holds no run (there is no {FILE}); give the folder that `rlcm train` printed.")
    values = read_whole(local(file, "config"), TrainConfig, names_of(TrainConfig))
    try:
        found = parse_settings(TrainConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{shown(file)}: {error}\n{_what_helps(run)}") from None
    if not changes:
        return found
    apply(values, changes, TrainConfig)
    return parse_settings(TrainConfig, values)


def _what_helps(run: Path) -> str:
    """Return who wrote a run whose configuration is not understood, and what of it can be used all the same."""
    by = _version_of(run)
    text = (
        f"The run was written by rlcm {by}, and this is rlcm {__version__}: install rlcm {by} or a later version."
        if by and by != __version__
        else "If a later version of rlcm wrote this, install that one; if it was edited by hand, put back what was there."
    )
    weights = run / WEIGHTS
    if weights.is_file():
        text += (
            f"\nThe run's LoRA can be used without rlcm: diffusers loads {shown(weights)} as it is, and "
            f"{shown(run / 'final/README.md')} says how."
        )
    return text


def _version_of(run: Path) -> str | None:
    """Return the version of rlcm that wrote a run, where the run says so."""
    try:
        if by := written_by(read_text(run / FILE)):
            return by
        return str(read_json(run / DEPENDS_ON)["surroundings"]["rlcm"]).partition(" ")[0]
    except (UnreadableFileError, LookupError, TypeError):
        return None
