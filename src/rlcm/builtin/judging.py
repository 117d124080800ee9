"""What a detector says of pictures and of what was asked of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlcm.builtin import model_path
from rlcm.builtin.detector import Detector, JudgeDetector
from rlcm.builtin.scenes import SIZE
from rlcm.builtin.verdict import verdict
from rlcm.builtin.vocabulary import known


class PromptJudge:
    """Asks the held-out judge whether pictures have what their prompts ask for.

    From images [B, 3, h, w] in [0, 1], prompts and their metadata to answers [B], 1 or 0, by question: `right` is asked of all, and
    each kind of prompt, by its name in GenEval, of its own pictures alone. Where nothing is asked, the answer is NaN: of another
    kind of prompt, or of one that is none of the world's and has no metadata. A question that is asked of no picture is left out.
    """

    def __init__(self) -> None:
        self._judge = JudgeDetector.load(model_path("judge"))

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        asked = _asked(prompts, metadata)
        rows = [row for row, entry in enumerate(asked) if entry is not None]
        if not rows:
            return {}
        answers = torch.full((len(asked),), torch.nan)
        there = [entry for entry in asked if entry is not None]
        answers[rows] = right(self._judge, images[rows], there).float()
        kinds = {tag: torch.tensor([entry is not None and entry.get("tag") == tag for entry in asked]) for tag in _kinds(asked)}
        return {"right": answers} | {tag: answers.where(mine, torch.nan) for tag, mine in kinds.items()}

    def features(self, images: Tensor) -> Tensor:
        """Return what the judge sees of images [B, 3, h, w] as one vector each: [B, 384], of length 1."""
        return self._judge.features(fitted(images))


def questions(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> list[str]:
    """Return what `PromptJudge` answers of pictures of these prompts."""
    asked = _asked(prompts, metadata)
    return ["right", *_kinds(asked)] if any(entry is not None for entry in asked) else []


def _asked(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any] | None]:
    return [known(prompt, entry) for prompt, entry in zip(prompts, metadata or [{}] * len(prompts), strict=True)]


def _kinds(asked: Sequence[Mapping[str, Any] | None]) -> list[str]:
    tags = list(dict.fromkeys(tag for entry in asked if entry is not None and (tag := entry.get("tag"))))
    return tags if len(tags) > 1 else []


def right(detector: Detector, images: Tensor, asked: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return whether each of the images [B, 3, h, w] has what its metadata ask for: booleans [B]."""
    found = detector.find(fitted(images))
    return torch.tensor([verdict(things, a) for things, a in zip(found, asked, strict=True)])


def fitted(images: Tensor) -> Tensor:
    """Return images [B, 3, h, w] at the detectors' size, fp32, on the CPU: [B, 3, 64, 64]; differentiable."""
    images = images.float().cpu()
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return images


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


EDGE = 2
"""Of a picture's edge so many pixels are its ground."""


def ground_spread(images: Tensor) -> float:
    """Return how far the grounds of images [B, 3, h, w] in [0, 1] are apart: the root mean square distance of their colours (RGB).

    The colour of a ground is the median of a picture's outermost pixels, in each channel. No detector is asked.
    """
    sides = [images[..., :EDGE, :], images[..., -EDGE:, :], images[..., :EDGE], images[..., -EDGE:]]
    colours = torch.cat([side.flatten(2) for side in sides], dim=2).median(2).values
    return float(colours.var(0, correction=0).sum().sqrt())
