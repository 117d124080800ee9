"""What the rewards on published CLIP models share: where these lie, how they are fetched, and what they are shown."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlcm.rewards.learned.clip import ClipEncoder, Network, load_clip, resize_crop, resize_pad, standardise
from rlcm.rewards.learned.hub import TOKENIZER_FILES, Source

CLIP_L = Source("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
CLIP_H = Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c", TOKENIZER_FILES)
"""Configuration and tokenizer only."""


def choose(place: str | None, revision: str | None, default: Source) -> Source:
    """Return where a model lies: the default, or a place of the user's with the files of the default."""
    if place is None:
        return Source(default.place, revision or default.revision, default.files)
    return Source(place, revision, default.files)


def fetch_clip(source: Source, tokenizer: Source, prepare: Any, network: Network) -> ClipEncoder:
    """Return the CLIP model of a source, downloaded first where it has to be."""
    return load_clip(source.fetch(), tokenizer.fetch(), prepare, network)


def crop(images: Tensor, side: int) -> Tensor:
    """Return images resized and cropped to a square, standardised."""
    return standardise(resize_crop(images, side))


def pad(images: Tensor, side: int) -> Tensor:
    """Return images resized and padded to a square, standardised."""
    return standardise(resize_pad(images, side))
