"""The human preference score, version 2.1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from rlcm.rewards.learned.clip import ClipEncoder, HasClip, Lazy, Network, load_clip, load_tokenizer
from rlcm.rewards.learned.hub import TOKENIZER_FILES, Source, read_tensors
from rlcm.rewards.learned.open_clip import fill, from_open_clip
from rlcm.rewards.learned.published import CLIP_H, pad

HPS_SHA256 = "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"


class HumanPreference(HasClip):
    """Human preference score v2.1, about 0.2 to 0.35: cos(image, prompt) of a fine-tuned CLIP ViT-H/14.

    Wu et al. 2023, "Human preference score v2" (arXiv:2306.09341). Pictures are padded with black, not cropped.
    Differentiable.

    Args:
        model: the published file (open_clip's names), or a folder with a CLIP model in transformers format; left out, the
            published one from the Hub.
        sha256: checksum of the file, or null for none.
        base: folder or Hub repository with configuration and tokenizer of CLIP ViT-H/14.
        revision: the base repository's commit.
    """

    differentiable = True
    """Gradients flow through it."""
    places = ("model", "base")
    """Arguments that may name a local file or folder."""

    def __init__(
        self,
        *,
        model: str | None = None,
        sha256: str | None = HPS_SHA256,
        base: str | None = None,
        revision: str | None = None,
        batch_size: int = 16,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        network = Network(batch_size, dtype, device)
        published = Source("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", ("HPS_v2.1_compressed.pt",), sha256)
        source = Source(model, sha256=sha256) if model else published
        config = Source(base, revision, TOKENIZER_FILES) if base else CLIP_H
        self.sources = [source, config]

        def load() -> ClipEncoder:
            path, folder = source.fetch(), config.fetch()
            if path.is_dir():
                return load_clip(path, folder, pad, network)
            clip = CLIPModel(CLIPConfig.from_pretrained(folder))
            fill(clip, from_open_clip(read_tensors(path)), str(path))
            return ClipEncoder(clip, load_tokenizer(folder), pad, network)

        self._encoder = Lazy(load)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores [B] of images [B, 3, h, w] and their prompts."""
        return self._encoder().cosine(images, prompts)
