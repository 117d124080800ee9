"""The last line of a run's config.yaml, by which a file that was cut short is known: a run writes all of its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlcm._version import __version__

_LAST = re.compile(r"^# written by rlcm (\S{1,40}): ([0-9]{1,6}) settings[ \t]*$", re.MULTILINE)


def last_line(values: Mapping[str, Any]) -> str:
    """Return the comment that ends the config.yaml of a run with these settings: who wrote it, and how many there are."""
    return f"# written by rlcm {__version__}: {_count(values)} settings\n"


def is_cut(text: str, values: Mapping[str, Any]) -> bool:
    """Return whether a run's config.yaml lacks some of what was written into it.

    Values may be others than were written, and lines may have been added: a person may edit the file. Where the last line is
    gone, or was not written yet, the last setting has to be there.

    Args:
        text: of the file.
        values: that it holds.
    """
    said = _LAST.findall(text)
    if said:
        return _count(values) < int(said[-1][1])
    run = values.get("run")
    return not isinstance(run, Mapping) or "timeout_seconds" not in run


def written_by(text: str) -> str | None:
    """Return the version of rlcm that wrote a run's config.yaml, where it says so."""
    said = _LAST.findall(text)
    return said[-1][0] if said else None


def _count(values: Mapping[str, Any]) -> int:
    """Return how many settings there are, by themselves or in a group; what lies inside one is not counted."""
    return sum(len(value) if isinstance(value, Mapping) else 1 for value in values.values())
