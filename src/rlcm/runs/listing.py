"""Which runs a folder holds: those that cannot be looked at are left out, by their names and with the reason."""

from __future__ import annotations

import os
from pathlib import Path

from rlcm.runs.files import printable, stamp, why_no_file

SIGNS = ("config.yaml", "metrics.jsonl")
"""A folder with one of them is a run."""


def runs_in(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the runs of a folder, the one that changed last first, and why others are left out, by printable names.

    A run is a folder, or a link to one, directly below it, whose name does not begin with a dot. What looks like none is passed over.
    """
    try:
        entries = sorted(os.listdir(folder))
    except FileNotFoundError:
        return [], {}
    except OSError as error:
        return [], {printable(folder): error.strerror or str(error)}
    runs, left_out = [], {}
    for name in entries:
        why = None if name.startswith(".") else why_left_out(folder / name)
        if why:
            left_out[printable(name)] = why
        elif why is not None:
            runs.append(folder / name)
    runs.sort(key=_changed, reverse=True)
    return runs, left_out


def why_left_out(run: Path) -> str | None:
    """Return why a run cannot be looked at; nothing where it can, None where it is no run at all."""
    place = why_no_file(run)
    if place != "it is a folder":
        # Files, pipes and the like are no runs, and nobody misses them. Links that lead nowhere may have been runs.
        return place if os.path.islink(run) and place.startswith("it is a link") else None
    signs = []
    for name in SIGNS:
        try:
            os.lstat(run / name)
            signs.append(name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return error.strerror or str(error)
    if not signs:
        return None
    if printable(run.name) != run.name:
        is_text = run.name.isascii() or not any("\ud800" <= one <= "\udfff" for one in run.name)
        what = "a character that cannot be shown, such as a line break" if is_text else "what is no UTF-8 text"
        return f"its name holds {what}; rename the folder"
    whys = {name: why_no_file(run / name) for name in signs}
    return "" if not all(whys.values()) else "; ".join(f"{name}: {why}" for name, why in whys.items())


def _changed(run: Path) -> tuple[int, str]:
    """Return when a run got its last round, in nanoseconds; before the first one, when it was made."""
    stamps = [stamp(run / part) for part in ("metrics.jsonl", "config.yaml")]
    return next((found[0] for found in stamps if found), 0), run.name
