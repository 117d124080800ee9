"""Pictures as the model itself spoils them, labelled by rule: a detector must judge these, not renders."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlcm.builtin.scenes import Thing
from rlcm.builtin.vocabulary import TAGS, every
from rlcm.distillation.fit import device
from rlcm.distillation.loss import NoiseSchedule
from rlcm.recipe.latents import Captions, captions, seeded
from rlcm.recipe.teacher import teacher_scheduler

SPOILT = 0.5
"""The share of pictures that go through the model."""


class Spoiler:
    """Sends some pictures through the autoencoder, with their latents changed, or lets the teacher draw them in one step.

    Whole stay: reconstructions; latents with a little noise, or a little blurred; what the teacher makes in one step of a picture
    with little noise on it. Nothing is in latents halfway between two pictures, nor in what the teacher sees in pure noise, which
    is a mean of all that it could draw.
    """

    def __init__(self, vae: Any, teacher: Any, words: Captions) -> None:
        self._vae, self._teacher, self._words = vae, teacher, words
        self._schedule = NoiseSchedule.of(teacher_scheduler())
        self._asked = [asked for tag in TAGS for asked in every(tag, False)]

    @torch.no_grad()
    def __call__(
        self, images: Tensor, things: list[tuple[Thing, ...]], rng: torch.Generator
    ) -> tuple[Tensor, list[tuple[Thing, ...]]]:
        """Return the images [B, 3, 64, 64] and their things, after some of them were spoilt."""
        count = int(len(images) * SPOILT)
        rows = torch.randperm(len(images), generator=rng)[:count]
        z = self._vae.encode(images[rows].to(device()) * 2 - 1).latent_dist.mode()
        ways = torch.rand(count, generator=rng)
        noise = torch.randn(z.shape, generator=rng).to(z.device)
        amount = torch.rand(count, 1, 1, 1, generator=rng).to(z.device)
        way = ways.to(z.device).view(-1, 1, 1, 1)
        blurred = F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        t = (20 + 230 * amount.flatten()).long()
        changed = torch.where(way < 0.4, z + 0.35 * amount * noise, torch.lerp(z, blurred, 0.4 * amount))
        changed = torch.where(way < 0.55, changed, self._one_step(z, noise, t, rng))
        changed = torch.where(way < 0.75, changed, torch.lerp(z, z.roll(1, 0), 0.4 + 0.2 * amount))
        changed = torch.where(way < 0.88, changed, self._one_step(z, noise, torch.full_like(t, 999), rng))
        decoded = (self._vae.decode(changed).sample / 2 + 0.5).clamp(0, 1).cpu()
        images, things = images.clone(), list(things)
        images[rows] = decoded
        for row, kind in zip(rows.tolist(), ways.tolist(), strict=True):
            things[row] = things[row] if kind < 0.75 else ()
        return images, things

    def _one_step(self, z: Tensor, noise: Tensor, t: Tensor, rng: torch.Generator) -> Tensor:
        """Return what the teacher takes z to be when it sees it with the noise of t, and a prompt that need not fit."""
        pure = (t == 999).view(-1, 1, 1, 1)
        x_t = torch.where(pure, noise, self._schedule.add_noise(z, noise, t))
        draw = seeded(rng)
        texts = captions([self._asked[i] for i in draw.integers(len(self._asked), size=len(z))], draw)
        texts = [text if late else "" for text, late in zip(texts, pure.flatten().tolist(), strict=True)]
        output = self._teacher(x_t, t, self._words.embed(texts)).sample
        return self._schedule.predict(x_t, output, t)[0]
