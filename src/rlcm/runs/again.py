"""How a run that was stopped goes on: by a command, or in Python where no command can find its rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlcm.errors import UnreadableFileError
from rlcm.paths import command, shown
from rlcm.runs.files import parse_yaml, read_text


def is_object(name: str) -> bool:
    """Say whether a reward of this name was a Python object of the program that began the run: no other can import it."""
    place, _, function = name.rpartition(":")
    return place in ("__main__", "<exec>") or bool(set("<(") & set(function))


def going_on(folder: Path, *changes: str, force: bool = False) -> str:
    """Return what continues a run.

    Args:
        folder: of the run.
        changes: settings that are others from here on, as KEY=VALUE.
        force: go on although something changed.
    """
    if _has_objects(folder):
        others = f"{list(changes)}, " if changes else ""
        forced = ", force=True" if force else ""
        which = "" if force else ", with the same rewards"
        return f"rlcm.Trainer.resume({shown(folder)!r}, {others}rewards=...{forced}).train(), in Python{which}"
    return command("rlcm", "train", "--resume", folder, *changes, *(["--force"] if force else []))


def repeated(folder: Path, *changes: str) -> str:
    """Return what begins a new run with the settings of another one.

    Args:
        changes: settings that are others, as KEY=VALUE.
    """
    file = folder / "config.yaml"
    if _has_objects(folder):
        config = f"rlcm.load_config({shown(file)!r}, {list(changes)})" if changes else repr(shown(file))
        return f"rlcm.train({config}, rewards=..., name='NEW'), in Python"
    return command("rlcm", "train", file, "name=NEW", *changes)


def _has_objects(folder: Path) -> bool:
    """Say whether a reward of a run is an object, by its config.yaml; not where that cannot be read."""
    try:
        found: Any = parse_yaml(read_text(folder / "config.yaml"))
    except (UnreadableFileError, ValueError):
        return False
    entries = found.get("rewards") if isinstance(found, dict) else None
    named = [entry.get("name") for entry in (entries if isinstance(entries, list) else []) if isinstance(entry, dict)]
    return any(is_object(name) for name in named if isinstance(name, str))
