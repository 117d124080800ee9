"""The held-out judge: a classifier of animal and background colour that no reward and no training of a generator uses."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from rlcm.builtin.vocabulary import ANIMALS, COLOURS


class Judge(nn.Module):
    """Names the animal and the background colour of a picture.

    Call it with images [B, 3, 64, 64] in [0, 1]; it returns logits over the animals [B, 45] and the colours [B, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 64, 96)
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU(), _Residual(width)]
            before = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.animal = nn.Linear(4 * before, len(ANIMALS))
        self.colour = nn.Linear(4 * before, len(COLOURS))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the animal [B, 45] and of the colour [B, 10] of images [B, 3, 64, 64] in [0, 1]."""
        features = self.features(images * 2 - 1)
        return self.animal(features), self.colour(features)

    @torch.no_grad()
    def name(self, images: torch.Tensor, batch_size: int = 250) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the indices of the animal [B] and of the colour [B] seen in images [B, 3, 64, 64]."""
        pairs = [self(part) for part in images.split(batch_size)]
        return torch.cat([animal.argmax(1) for animal, _ in pairs]), torch.cat([colour.argmax(1) for _, colour in pairs])

    @classmethod
    def load(cls, file: Path) -> Judge:
        """Return the judge with the weights of a safetensors file, in evaluation mode, fp32."""
        judge = cls()
        judge.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
        return judge.eval().requires_grad_(False)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.body(x)
        return y
