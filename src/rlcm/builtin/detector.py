"""The two detectors of the world: one that rewards may ask, and the held-out judge, built otherwise and trained otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rlcm.builtin.verdict import Found
from rlcm.builtin.vocabulary import ANIMALS, CLASSES, COLOURS

CELLS = 16
"""The maps are 16x16: a cell is four pixels."""
OUTPUTS = len(CLASSES) + len(COLOURS) + 3
THRESHOLD = 0.4
"""A peak of at least this probability is a thing."""
NEAR = 2.5
"""Of two peaks so many cells apart or nearer, the lower one is the same thing."""


class Maps:
    """What a detector says of pictures, for each of 16x16 cells.

    Attributes:
        classes: [B, 20, 16, 16] logits: is the centre of such a thing in this cell?
        colours: [B, 5, 16, 16] logits of the colour of the thing there.
        offsets: [B, 2, 16, 16] from the cell's middle to the thing's centre, (x, y) in cells.
        sides: [B, 16, 16] the longer side of the thing there, in cells.
    """

    def __init__(self, output: Tensor) -> None:
        self.classes, self.colours, self.offsets, sides = output.split([len(CLASSES), len(COLOURS), 2, 1], dim=1)
        self.sides = sides[:, 0]

    def centres(self) -> tuple[Tensor, Tensor]:
        """Return where each cell's thing has its centre: x and y [B, 16, 16], as shares of the picture's side."""
        cells = torch.arange(CELLS, device=self.offsets.device, dtype=self.offsets.dtype) + 0.5
        return (cells[None, :] + self.offsets[:, 0]) / CELLS, (cells[:, None] + self.offsets[:, 1]) / CELLS


_D = TypeVar("_D", bound="Detector")


class Detector(nn.Module):
    """A network from pictures [B, 3, 64, 64] in [0, 1] to `Maps`, and the things that are read off them."""

    body: nn.Module

    def forward(self, images: Tensor) -> Maps:
        """Return the maps of images [B, 3, 64, 64] in [0, 1]; differentiable."""
        return Maps(self.body(images * 2 - 1))

    @torch.no_grad()
    def find(self, images: Tensor, batch_size: int = 250) -> list[list[Found]]:
        """Return the things in each of the images [B, 3, 64, 64]."""
        return [things for part in images.split(batch_size) for things in read(self(part))]

    @classmethod
    def load(cls: type[_D], file: Path) -> _D:
        """Return the detector with the weights of a safetensors file, in evaluation mode, fp32."""
        detector = cls()
        detector.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
        return detector.eval().requires_grad_(False)


class RewardDetector(Detector):
    """The one that rewards ask: convolutions at one resolution, some of them dilated."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        stem = [_conv(3, 32, stride=2), _conv(32, width, stride=2)]
        trunk = [_Residual(_conv(width, width, dilation=d)) for d in (1, 2, 1, 3, 1)]
        self.body = nn.Sequential(*stem, *trunk, _head(width))


class JudgeDetector(Detector):
    """The judge: down to 4x4 cells and up again, with what was seen on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.body: _Hourglass = _Hourglass((24, 48, 72, 96))

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 250) -> Tensor:
        """Return what the judge sees of images [B, 3, 64, 64] as one vector each: [B, 384], of length 1."""
        return torch.cat([F.normalize(self.body.summary(part * 2 - 1), dim=1) for part in images.split(batch_size)])


class _Hourglass(nn.Module):
    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stem = nn.Sequential(nn.Conv2d(3, first, 5, stride=2, padding=2), nn.GELU(), _Block(first))
        self.fine = nn.Sequential(nn.Conv2d(first, second, 2, stride=2), _Block(second), _Block(second))
        self.middle = nn.Sequential(nn.Conv2d(second, third, 2, stride=2), _Block(third), _Block(third))
        self.coarse = nn.Sequential(nn.Conv2d(third, fourth, 2, stride=2), _Block(fourth), _Block(fourth))
        self.up_middle = nn.Conv2d(fourth, third, 1)
        self.up_fine = nn.Conv2d(third, second, 1)
        self.after_middle, self.after_fine = _Block(third), nn.Sequential(_Block(second), _Block(second))
        self.head = _head(second)

    def summary(self, x: Tensor) -> Tensor:
        """Return what is known of each quarter of the picture at the coarsest place: [B, 4 * width]."""
        coarse = self.coarse(self.middle(self.fine(self.stem(x))))
        return F.adaptive_avg_pool2d(coarse, 2).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        middle = self.middle(fine)
        middle = self.after_middle(middle + F.interpolate(self.up_middle(self.coarse(middle)), scale_factor=2.0))
        y: Tensor = self.head(self.after_fine(fine + F.interpolate(self.up_fine(middle), scale_factor=2.0)))
        return y


class _Block(nn.Module):
    """Large depthwise convolution, then a wide layer at every place (ConvNeXt)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.GELU(),
            nn.Conv2d(3 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


def _conv(before: int, width: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    convolution = nn.Conv2d(before, width, 3, stride=stride, padding=dilation, dilation=dilation)
    return nn.Sequential(convolution, nn.GroupNorm(8, width), nn.SiLU())


def _head(width: int) -> nn.Conv2d:
    head = nn.Conv2d(width, OUTPUTS, 1)
    bias = torch.zeros(OUTPUTS)
    bias[: len(CLASSES)] = -4.0  # things are rare: at first every cell says so
    head.bias = nn.Parameter(bias)
    return head


@torch.no_grad()
def read(maps: Maps, threshold: float = THRESHOLD) -> list[list[Found]]:
    """Return the things in each picture: the peaks of the maps, strongest first, none near a stronger one."""
    probability = maps.classes.sigmoid()
    peaks = (probability >= F.max_pool2d(probability, 3, 1, 1)) & (probability >= threshold)
    xs, ys = maps.centres()
    found: list[list[Found]] = [[] for _ in range(len(probability))]
    order = probability[peaks].argsort(descending=True)
    for picture, kind, row, column in peaks.nonzero()[order].tolist():
        x, y = float(xs[picture, row, column]), float(ys[picture, row, column])
        half = float(maps.sides[picture, row, column].clamp(1.0, CELLS)) / CELLS / 2
        if any(max(abs(x - f.centre[0]), abs(y - f.centre[1])) < NEAR / CELLS for f in found[picture]):
            continue
        colour = None if kind < len(ANIMALS) else COLOURS[int(maps.colours[picture, :, row, column].argmax())]
        box = (x - half, y - half, x + half, y + half)
        found[picture].append(Found(CLASSES[kind], colour, box, float(probability[picture, kind, row, column])))
    return found
