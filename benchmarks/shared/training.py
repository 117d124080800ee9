"""A training by the command line, in a process of its own with one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_alone(arguments: Sequence[str]) -> None:
    """Run `rlcm train` with these arguments, silently.

    Raises:
        CalledProcessError: if it fails.
    """
    subprocess.run(
        [sys.executable, "-m", "rlcm", "train", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train_once(folder: Path, seed: int, changes: Sequence[str]) -> Path:
    """Train a run of this folder and seed, unless it has ended, and return the folder."""
    if not (folder / "final").is_dir():
        run_alone([f"name={folder.name}", f"output={folder.parent}", f"seed={seed}", "run.tracker=none", *changes])
    return folder
