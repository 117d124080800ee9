"""The files of results, as they are committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(file: Path, found: Any, indent: int = 2) -> None:
    """Write what was found as JSON, in a folder that need not be there yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=indent) + "\n")


def read(file: Path) -> Any:
    """Return what a file holds."""
    return json.loads(file.read_text())


def read_if_there(file: Path) -> dict[str, Any]:
    """Return what a file holds, and nothing where there is no such file."""
    return read(file) if file.is_file() else {}


def rounded(value: Any) -> Any:
    """Return nested values with floats of six significant digits, so that the committed file stays small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value
