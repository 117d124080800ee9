"""The machine: what a figure was measured on, and how much memory it can give."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import psutil
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


def available_memory(device: torch.device | str) -> int:
    """Return the bytes that this process can still take on a device."""
    device = torch.device(device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if sys.platform == "linux" and limit.is_file() and limit.read_text().strip() != "max":
        # A container's limit; the files in its cache count as used, which makes the answer a little too small.
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free
