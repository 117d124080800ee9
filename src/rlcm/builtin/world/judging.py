"""What a detector says of pictures and of what was asked of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.builtin.world.detector import Detector
from rlcm.builtin.world.verdict import verdict


def right(detector: Detector, images: Tensor, asked: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return whether each of the images [B, 3, 64, 64] has what its metadata ask for: booleans [B]."""
    found = detector.find(images)
    return torch.tensor([verdict(things, a) for things, a in zip(found, asked, strict=True)])


def by_kind(answers: Tensor, asked: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of right pictures of each kind of prompt, and "overall", the mean of the kinds."""
    tags = [a["tag"] for a in asked]
    shares = {
        tag: float(answers[torch.tensor([t == tag for t in tags])].float().mean())
        for tag in sorted(Counter(tags), key=tags.index)
    }
    return shares | {"overall": sum(shares.values()) / len(shares)}


def sharpness(images: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels, across and down, of images in [0, 1]."""
    return float(images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean())


def diversity(features: Tensor, prompts: Sequence[str]) -> float:
    """Return the mean distance (one minus cosine) of two pictures of one prompt, from features [B, D] of length 1."""
    distances = []
    for prompt in set(prompts):
        rows = features[[i for i, p in enumerate(prompts) if p == prompt]]
        if len(rows) > 1:
            distance = 1 - rows @ rows.T
            distances.append(float(distance.sum() / (len(rows) * (len(rows) - 1))))
    return sum(distances) / len(distances)
