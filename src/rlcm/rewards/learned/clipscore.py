"""CLIPScore: how well a picture fits its prompt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlcm.rewards.learned.clip import HasClip, Lazy, Network
from rlcm.rewards.learned.published import CLIP_L, choose, crop, fetch_clip


class ClipScore(HasClip):
    """CLIPScore, 0 to 2.5: weight * max(cos(image, prefix + prompt), 0).

    Hessel et al. 2021, "CLIPScore: a reference-free evaluation metric for image captioning" (arXiv:2104.08718), section 3.
    Differentiable; no gradient where the cosine is negative.

    Args:
        model: folder or Hub repository of a CLIP model; left out, OpenAI's ViT-L/14.
        revision: the repository's commit.
        prefix: put before every prompt, as the paper does.
        weight: the factor of the paper.
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
        prefix: str = "A photo depicts ",
        weight: float = 2.5,
        batch_size: int = 32,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        network = Network(batch_size, dtype, device)
        source = choose(model, revision, CLIP_L)
        self.sources = [source]
        self.prefix, self.weight = prefix, weight
        self._encoder = Lazy(lambda: fetch_clip(source, source, crop, network))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] and their prompts."""
        return self.weight * self._encoder().cosine(images, [self.prefix + prompt for prompt in prompts]).clamp(min=0)
