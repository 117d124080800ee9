"""The two ways to a first run: the demo, and a reward of one's own in a file that can be changed."""

from __future__ import annotations

import os
from pathlib import Path

from rlcm.builtin import DEMO
from rlcm.runs.files import is_there
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_bytes
from rlcm.training.config import TrainConfig, load_config, parse_settings

OWN = "*mine"
"""What the form calls a configuration with a reward of one's own."""
REWARD, FUNCTION = "my_reward.py", "my_reward"
TEXT = '''\
"""A reward of your own: change what `my_reward` returns, save the file, and start the training again."""


def my_reward(images, prompts):
    """Return how much more blue than red and green each picture is.

    images: [B, 3, height, width], red, green and blue from 0 to 1. prompts: B texts.
    Returns B numbers; higher is better.
    """
    red, green, blue = images.mean(dim=(2, 3)).unbind(1)
    return blue - (red + green) / 2
'''
ROUNDS = 20
"""Of a first training with a reward of one's own: enough to see a change."""


def demo() -> TrainConfig:
    """Return the demo's configuration, as the run `demo`."""
    return load_config(DEMO, ["name=demo"])


def own_reward(folder: Path) -> TrainConfig:
    """Return a configuration with a reward of the user's own; its file is written where there is none yet.

    Args:
        folder: of the runs, in which the file lies.

    Raises:
        RunDirectoryError: if it cannot be written.
    """
    file = file_of(folder)
    if not is_there(file):
        with disk_errors(file):
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(file, TEXT.encode())
    return parse_settings(TrainConfig, {"rewards": [f"{file}:{FUNCTION}"], "run": {"rounds": ROUNDS}})


def file_of(folder: Path) -> Path:
    """Return the file of the reward of one's own, in the folder of the runs."""
    return Path(os.path.abspath(folder)) / REWARD
