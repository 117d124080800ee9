"""A training by the command line, in a process of its own with one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared import results as files


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
    """Train a run of this folder and seed, unless it has ended, and return the folder.

    Raises:
        SystemExit: if it has ended and was made with other changes.
    """
    wanted = {"changes": ["run.tracker=none", *changes]}
    file = folder.parent / f"{folder.name}.changes.json"
    if not (folder / "final").is_dir():
        files.write(file, wanted)
        run_alone([f"name={folder.name}", f"output={folder.parent}", f"seed={seed}", *wanted["changes"]])
    elif files.read_if_there(file) != wanted:
        raise SystemExit(f"{folder} was made with other settings than these; move it away, or keep the runs elsewhere (--keep)")
    return folder
