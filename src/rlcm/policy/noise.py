"""Noise that belongs to an image, not to a process: the same on one process or eight, on CPU or GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

SEEDS = 2**32
"""How many seeds draw pictures of their own: of a larger one torch uses the last 32 bits."""


def image_seed(*identity: int | str) -> int:
    """Return a 63-bit seed for an image's identity, such as (run seed, round, index)."""
    digest = hashlib.blake2b(":".join(map(str, identity)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream(seed: int) -> torch.Generator:
    """Return an image's stream of noise.

    Its draws are those that a diffusers pipeline makes when it is given this generator for the image: first the initial
    latents, then one draw a noisy step.
    """
    return torch.Generator().manual_seed(seed)


def draw(streams: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Return the next standard normal latent of every stream, [B, *shape], fp32 on the CPU."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in streams])
