"""Trains the two detectors: the one that rewards ask, and the held-out judge, on pictures of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rlcm.builtin.detector import CELLS, Detector, Maps
from rlcm.builtin.renderer import Renderer
from rlcm.builtin.scenes import SIZE, Thing
from rlcm.builtin.vocabulary import CLASSES
from rlcm.distillation.fit import Fit, device, fast_precision, fit
from rlcm.recipe.broken import Breaker, worn
from rlcm.recipe.data import Pictures

CELL = SIZE // CELLS
Hard = Callable[[Tensor, list[tuple[Thing, ...]], torch.Generator], tuple[Tensor, list[tuple[Thing, ...]]]]
"""Makes pictures harder by means of a trained generator's parts: (images, things, rng) to the same."""


def train_detector(
    name: str,
    detector: Detector,
    pictures: Pictures,
    breaker: Breaker,
    work: Path,
    settings: Fit,
    seed: int,
    batch_size: int,
    *,
    hard: Hard | None = None,
) -> Detector:
    """Return `detector`, trained on whole, worn and broken pictures, and where `hard` is given on what it makes of them."""
    detector.to(device()).train()

    def loss(rng: torch.Generator, _progress: float) -> dict[str, Tensor]:
        number = int(torch.randint(2**31, (1,), generator=rng))
        batch = breaker(pictures.batch(batch_size, number), number)
        images, things = batch.images, batch.things
        if hard is not None:
            images, things = hard(images, things, rng)
        images = worn(images, rng).to(device())
        with fast_precision():
            maps = detector(images)
        return detection_loss(maps, things)

    fit(name, detector, loss, settings, work, seed)
    return detector.eval()


def detection_loss(maps: Maps, things: list[tuple[Thing, ...]]) -> dict[str, Tensor]:
    """Return the loss of maps against the things of every picture, and its parts.

    Classes: the focal loss of Zhou et al. 2019, "Objects as Points" (arXiv 1904.07850), against bells around the centres. Colour,
    centre and side: at the cells around a centre.
    """
    target = bells(things).to(maps.classes.device)
    logits = maps.classes.float()
    probability = logits.sigmoid()
    centre = target == 1
    positive = -(1 - probability).square() * F.logsigmoid(logits) * centre
    negative = -(1 - target).pow(4) * probability.square() * F.logsigmoid(-logits) * ~centre
    count = centre.sum().clamp(min=1)
    heat = (positive.sum() + negative.sum()) / count
    rows = [(b, t) for b, picture in enumerate(things) for t in picture]
    if not rows:
        return {"loss": heat, "heat": heat.detach()}
    picture, row, column, x, y, side, colour = _cells(rows, maps.classes.device)
    offsets = maps.offsets.float()[picture, :, row, column]
    wanted = torch.stack([x - (column + 0.5), y - (row + 0.5)], dim=1)
    place = (offsets - wanted).abs().mean()
    size = (maps.sides.float()[picture, row, column] - side).abs().mean()
    coloured = colour >= 0
    hue = (
        F.cross_entropy(maps.colours.float()[picture, :, row, column][coloured], colour[coloured])
        if coloured.any()
        else 0 * heat
    )
    return {"loss": heat + hue + place + 0.3 * size, "heat": heat.detach(), "colour": hue.detach(), "place": place.detach()}


def bells(things: list[tuple[Thing, ...]]) -> Tensor:
    """Return what the class maps should be [B, 20, 16, 16]: 1 in the cell of a centre, falling off within two cells."""
    target = torch.zeros(len(things), len(CLASSES), CELLS, CELLS)
    line = torch.arange(CELLS, dtype=torch.float32)
    for b, picture in enumerate(things):
        for thing in picture:
            column, row = min(int(thing.x / CELL), CELLS - 1), min(int(thing.y / CELL), CELLS - 1)
            bell = torch.exp(-((line[None, :] - column).square() + (line[:, None] - row).square()) / 2)
            target[b, thing.kind] = torch.maximum(target[b, thing.kind], bell)
    return target


def _cells(rows: list[tuple[int, Thing]], where: torch.device) -> tuple[Tensor, ...]:
    """Return of the 3x3 cells around every centre: picture, row, column, centre (x, y) and side in cells, colour or -1."""
    values = [
        (b, r, c, t.x / CELL, t.y / CELL, t.side / CELL, -1 if t.colour is None else t.colour)
        for b, t in rows
        for r in range(int(t.y / CELL) - 1, int(t.y / CELL) + 2)
        for c in range(int(t.x / CELL) - 1, int(t.x / CELL) + 2)
        if 0 <= r < CELLS and 0 <= c < CELLS
    ]
    table = torch.tensor(values, device=where)
    whole = table[:, [0, 1, 2, 6]].long()
    return whole[:, 0], whole[:, 1], whole[:, 2], table[:, 3], table[:, 4], table[:, 5], whole[:, 3]


def new_breaker(font: Path, seed: int) -> Breaker:
    """Return what breaks pictures."""
    return Breaker(Renderer(font), seed)
