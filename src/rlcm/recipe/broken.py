"""Pictures as a half-trained or a misled generator draws them, labelled by rule: what is whole is a thing, what is broken is none.

A detector that knows renders alone is easily fooled: it has never seen what is no thing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlcm.builtin.renderer import Renderer
from rlcm.builtin.scenes import SIZE, Thing
from rlcm.builtin.vocabulary import ANIMALS, CLASSES, COLOURS
from rlcm.recipe.data import Batch

WHOLE = 0.55
"""The share of the pictures that stay whole."""


class Breaker:
    """Breaks some of a batch's pictures; of these `things` then holds only what is still whole.

    Args:
        seed: of the purpose; with the batch's number it decides all.
    """

    def __init__(self, renderer: Renderer, seed: int) -> None:
        self._renderer, self._seed = renderer, seed
        self._ways: list[Callable[[Tensor, tuple[Thing, ...], Tensor, np.random.Generator], tuple[Tensor, tuple[Thing, ...]]]]
        self._ways = [self.ghosts, self.erased, self.chimeras, self.shuffled, self.texture, self.tiny, self.torn]

    def __call__(self, batch: Batch, number: int) -> Batch:
        rng = np.random.default_rng([self._seed, number, 1])
        images, things = batch.images.clone(), list(batch.things)
        for i in range(len(images)):
            if rng.random() >= WHOLE:
                way = self._ways[rng.integers(len(self._ways))]
                images[i], things[i] = way(batch.images[i], batch.things[i], batch.images[i - 1], rng)
        return Batch(images, batch.asked, things)

    def ghosts(
        self, image: Tensor, things: tuple[Thing, ...], other: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[Thing, ...]]:
        """Two pictures laid over each other: of equal strength neither is there, a faint one does no harm."""
        if rng.random() < 0.3:
            return torch.lerp(image, other, float(rng.uniform(0.03, 0.15))), things
        return torch.lerp(image, other, float(rng.uniform(0.4, 0.6))), ()

    def erased(
        self, image: Tensor, things: tuple[Thing, ...], other: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[Thing, ...]]:
        """Of one thing about a half is covered with ground, sharply or softly."""
        lost = int(rng.integers(len(things)))
        thing = things[lost]
        y, x = np.mgrid[0:SIZE, 0:SIZE]
        angle = rng.uniform(0, 2 * np.pi)
        along = ((x - thing.x) * np.cos(angle) + (y - thing.y) * np.sin(angle)) / thing.side
        inside = np.maximum(abs(x - thing.x), abs(y - thing.y)) <= thing.side / 2 + 1.5
        softness = rng.uniform(0.01, 0.1)
        cover = torch.from_numpy((inside / (1 + np.exp(-(along + rng.uniform(0.0, 0.25)) / softness))).astype(np.float32))
        ground = self._ground(image)
        return torch.lerp(image, ground, cover), things[:lost] + things[lost + 1 :]

    def chimeras(
        self, image: Tensor, things: tuple[Thing, ...], other: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[Thing, ...]]:
        """Every thing is one class on one side and another on the other, or a mosaic of two."""
        changed = []
        for thing in things:
            kind = int((thing.kind + rng.integers(1, len(CLASSES))) % len(CLASSES))
            colour = None if kind < len(ANIMALS) else int(rng.integers(len(COLOURS)))
            changed.append(dataclasses.replace(thing, kind=kind, colour=colour))
        drawn = self._renderer.draw(changed, int(rng.integers(2**62)))
        second = torch.from_numpy(drawn.copy()).permute(2, 0, 1).float() / 255
        y, x = np.mgrid[0:SIZE, 0:SIZE]
        if rng.random() < 0.5:
            mask = np.zeros((SIZE, SIZE), bool)
            for thing in things:
                inside = np.maximum(abs(x - thing.x), abs(y - thing.y)) <= thing.side / 2 + 1
                mask |= inside & ((x > thing.x) if rng.random() < 0.5 else (y > thing.y))
        else:
            cell = int(rng.choice([3, 4, 6, 8]))
            mask = rng.random((SIZE // cell + 1, SIZE // cell + 1))[y // cell, x // cell] < 0.5
        return torch.where(torch.from_numpy(mask), second, image), ()

    def shuffled(
        self, image: Tensor, things: tuple[Thing, ...], other: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[Thing, ...]]:
        """The picture's squares in another order."""
        cell = int(rng.choice([8, 16] if max(t.side for t in things) > 30 else [8]))
        side = SIZE // cell
        squares = image.view(3, side, cell, side, cell).permute(1, 3, 0, 2, 4).reshape(side * side, 3, cell, cell)
        squares = squares[torch.from_numpy(rng.permutation(side * side))]
        return squares.view(side, side, 3, cell, cell).permute(2, 0, 3, 1, 4).reshape(3, SIZE, SIZE), ()

    def texture(
        self, image: Tensor, things: tuple[Thing, ...], other: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[Thing, ...]]:
        """Coloured noise of some grain, alone or as the ground of the picture's own colours."""
        grain = int(rng.choice([1, 2, 4, 8, 16]))
        noise = torch.from_numpy(rng.random((1, 3, SIZE // grain, SIZE // grain), dtype=np.float32))
        noise = F.interpolate(noise, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        if rng.random() < 0.5:  # the picture's own pixels, strewn about
            places = torch.from_numpy(rng.permutation(SIZE * SIZE))
            strewn = image.flatten(1)[:, places].view(1, 3, SIZE, SIZE)
            small = F.interpolate(strewn, scale_factor=1 / grain, mode="area") if grain < 16 else strewn
            noise = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        return noise, ()

    def tiny(
        self, image: Tensor, things: tuple[Thing, ...], other: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[Thing, ...]]:
        """The picture many times and small, or one corner of it large: nothing there has a thing's size."""
        if rng.random() < 0.5:
            times = int(rng.choice([3, 4]) if max(t.side for t in things) > 30 else 2)
            small = F.interpolate(image[None], size=(SIZE // times,) * 2, mode="area")[0]
            tiled = small.repeat(1, times + 1, times + 1)[:, :SIZE, :SIZE]
            return tiled, ()
        part = int(rng.integers(10, 15))
        thing = things[int(rng.integers(len(things)))]
        left, top = (int(np.clip(c - part / 2 + rng.uniform(-6, 6), 0, SIZE - part)) for c in (thing.x, thing.y))
        corner = image[None, :, top : top + part, left : left + part]
        return F.interpolate(corner, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0], ()

    def torn(
        self, image: Tensor, things: tuple[Thing, ...], other: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, tuple[Thing, ...]]:
        """Every place is drawn from one some pixels away: a little bends the things, much tears them up."""
        gentle = rng.random() < 0.4
        strength = rng.uniform(0.5, 1.5) if gentle else rng.uniform(7.0, 12.0)
        points = 6 if gentle else 12
        shift = torch.from_numpy(rng.normal(0, 1, (1, 2, points, points)).astype(np.float32))
        shift = F.interpolate(shift, size=(SIZE, SIZE), mode="bicubic", align_corners=False)[0] * strength * 2 / SIZE
        line = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
        grid = torch.stack([line[None, :] + shift[0], line[:, None] + shift[1]], dim=-1)
        bent = F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0]
        return bent, things if gentle else ()

    @staticmethod
    def _ground(image: Tensor) -> Tensor:
        """Return what the ground would be without things: the plane through the corners' colours."""
        corners = torch.stack([image[:, :2, :2], image[:, :2, -2:], image[:, -2:, :2], image[:, -2:, -2:]]).mean((2, 3))
        return F.interpolate(corners.T.reshape(1, 3, 2, 2), size=(SIZE, SIZE), mode="bilinear", align_corners=True)[0]


def worn(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return pictures as an imperfect generator may draw them: blurred, shrunk, noisy, of other contrast; their things are whole."""
    count = len(images)
    kind = torch.rand(count, 1, 1, 1, generator=rng)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    soft = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    small = F.interpolate(F.interpolate(images, scale_factor=0.5, mode="area"), scale_factor=2.0, mode="bilinear")
    images = torch.where(kind < 0.2, blurred, torch.where(kind < 0.3, soft, torch.where(kind < 0.45, small, images)))
    grey = 0.5 + (images - 0.5) * (0.85 + 0.25 * torch.rand(count, 1, 1, 1, generator=rng))
    tint = 0.05 * torch.randn(count, 3, 1, 1, generator=rng)
    noise = 0.08 * torch.rand(count, 1, 1, 1, generator=rng) * torch.randn(images.shape, generator=rng)
    # Noise of a coarser grain, too: what a decoder makes of a wrong latent.
    coarse = F.interpolate(torch.randn(count, 3, SIZE // 4, SIZE // 4, generator=rng), scale_factor=4.0, mode="bilinear")
    coarse = 0.08 * torch.rand(count, 1, 1, 1, generator=rng) ** 2 * coarse
    return (grey + tint + noise + coarse).clamp(0, 1)
