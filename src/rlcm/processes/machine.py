"""What machine a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    """Return processor or GPU, threads and torch version in one line."""
    threads = torch.get_num_threads()
    at_once = "" if torch.cuda.is_available() else f", {threads} thread{'s' * (threads > 1)}"
    return f"{processor(gpu=torch.cuda.is_available())}{at_once}, torch {torch.__version__}"


def processor(*, gpu: bool) -> str:
    """Return the name of the present GPU, or of the CPU."""
    if gpu:
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
