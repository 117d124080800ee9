"""Writes the trained parts as fp16 safetensors in plain diffusers and transformers folders."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from rlcm.builtin.world.detector import Detector


def pack_detector(detector: Detector, folder: Path) -> None:
    """Write a detector's weights in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous().cpu() for name, tensor in detector.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
