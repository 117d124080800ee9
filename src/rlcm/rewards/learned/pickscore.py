"""PickScore: people's preferences among pictures of the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlcm.rewards.learned.clip import HasClip, Lazy, Network
from rlcm.rewards.learned.hub import Source
from rlcm.rewards.learned.published import CLIP_H, choose, crop, fetch_clip

PICKSCORE = Source("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")


class PickScore(HasClip):
    """PickScore, about 18 to 24: exp(logit_scale) cos(image, prompt); one more means odds of e : 1 to be preferred.

    Kirstain et al. 2023, "Pick-a-Pic: an open dataset of user preferences" (arXiv:2305.01569), eq. 1. Differentiable.

    Args:
        model: folder or Hub repository of the model, tokenizer included if local; left out, PickScore_v1.
        revision: the repository's commit.
    """

    differentiable = True
    """Gradients flow through it."""
    places = ("model",)
    """Arguments that may name a local file or folder."""

    def __init__(
        self,
        *,
        model: str | None = None,
        revision: str | None = None,
        batch_size: int = 16,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        network = Network(batch_size, dtype, device)
        source = choose(model, revision, PICKSCORE)
        tokenizer = source if source.is_local else CLIP_H
        self.sources = [source, tokenizer]
        self._encoder = Lazy(lambda: fetch_clip(source, tokenizer, crop, network))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] and their prompts."""
        encoder = self._encoder()
        return encoder.scale * encoder.cosine(images, prompts)
