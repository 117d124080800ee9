"""The scorers of the package imscore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.rewards.imported import load_callable
from rlcm.rewards.learned.clip import Lazy, Network
from rlcm.rewards.learned.hub import Source

IMSCORE = {
    "ImageReward": ("imscore.imreward.model:ImageReward", "RE-N-Y/ImageReward"),
    "MPS": ("imscore.mps.model:MPS", "RE-N-Y/mpsv1"),
    "HPSv3": ("imscore.hpsv3.model:HPSv3", "RE-N-Y/hpsv3"),
    "SiglipPreference": ("imscore.preference.model:SiglipPreferenceScorer", "RE-N-Y/pickscore-siglip"),
    "ShadowAesthetic": ("imscore.aesthetic.model:ShadowAesthetic", "RE-N-Y/aesthetic-shadow-v2"),
    "CycleReward": ("imscore.cyclereward.model:CycleReward", "NagaSaiAbhinay/CycleReward-Combo"),
    "EvalMuse": ("imscore.evalmuse.model:EvalMuse", "RE-N-Y/evalmuse"),
    "VQAScore": ("imscore.vqascore.model:VQAScore", "RE-N-Y/clip-t5-xxl"),
}


class ImScore:
    """Any scorer of the package imscore (the extra `imscore`): ImageReward, MPS, HPSv3 and others.

    Args:
        scorer: one of the names in `IMSCORE`, or module:class of another scorer of that package.
        model: folder or Hub repository of its weights; left out, the usual one.
        revision: the repository's commit.
    """

    differentiable = True
    """Gradients flow through it."""
    places = ("model",)
    """Arguments that may name a local file or folder."""

    def __init__(
        self,
        *,
        scorer: str = "ImageReward",
        model: str | None = None,
        revision: str | None = None,
        batch_size: int = 16,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        self.network = Network(batch_size, dtype, device)
        if scorer not in IMSCORE and ":" not in scorer:
            raise ValueError(f"scorer={scorer!r} is not one of {', '.join(IMSCORE)}, nor module:class.")
        path, place = IMSCORE.get(scorer, (scorer, model))
        if not (model or place):
            raise ValueError(f"scorer={scorer!r} needs `model`, the folder or repository of its weights.")
        source = Source(model or str(place), revision, ("*",))
        self.sources = [source]

        def load() -> Any:
            scorer_class: Any = load_callable(path)
            found = scorer_class.from_pretrained(str(source.fetch()))
            return found.requires_grad_(False).eval().to(self.network.torch_device, self.network.torch_dtype)

        self._scorer = Lazy(load)

    def load(self) -> None:
        """Make the scorer now. Its class may fetch more than `sources`: tokenizers and encoders of other repositories."""
        self._scorer()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] and their prompts."""
        scorer, size = self._scorer(), self.network.batch_size
        rows = []
        for start in range(0, len(prompts), size):
            part = images[start : start + size].to(self.network.torch_device, self.network.torch_dtype)
            rows.append(scorer.score(part, list(prompts[start : start + size])).float().reshape(len(part)))
        return torch.cat(rows)
