"""The recipe's pictures: rendered once, kept in one file, drawn from by seeded index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlcm.builtin.renderer import SIZE, Renderer, random_scenes
from rlcm.builtin.vocabulary import Scene

# Seeds fixed before anything was trained. Rendering seeds of one set never meet those of another.
TRAIN_SEED, JUDGE_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000, 3_000_000


@dataclass(frozen=True, slots=True)
class Pictures:
    """Rendered pictures and what they show: images [N, 3, 64, 64] uint8 and scenes [N, 3] (animal, colour, pattern)."""

    images: torch.Tensor
    scenes: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, size: int, rng: torch.Generator, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `size` pictures [size, 3, 64, 64] in [0, 1], half of them mirrored, and their scenes [size, 3]."""
        index = torch.randint(len(self), (size,), generator=rng)
        mirrored = torch.rand(size, generator=rng) < 0.5
        images = self.images[index].to(device).float() / 255
        images = torch.where(mirrored.to(device)[:, None, None, None], images.flip(3), images)
        return images, self.scenes[index]

    def floats(self, device: torch.device) -> torch.Tensor:
        """Return all images in [0, 1]."""
        return self.images.to(device).float() / 255


def scene_rows(scenes: list[Scene]) -> torch.Tensor:
    """Return scenes as a tensor [N, 3]."""
    return torch.tensor([[s.animal, s.colour, s.pattern] for s in scenes])


def render(count: int, seed: int, held_out: bool, work: Path, font: Path) -> Pictures:
    """Return `count` pictures of trained or held-out combinations; rendered once, then read from `work`."""
    scenes = random_scenes(count, seed, held_out)
    file = work / f"renders-{seed}-{'held-out' if held_out else 'trained'}-{count}.npy"
    if file.exists():
        images = np.load(file, allow_pickle=False)
    else:
        renderer = Renderer(font)
        images = np.empty((count, 3, SIZE, SIZE), np.uint8)
        for i, scene in enumerate(scenes):
            images[i] = renderer.draw(scene, seed + i).transpose(2, 0, 1)
        partial = file.with_suffix(".partial.npy")
        np.save(partial, images, allow_pickle=False)
        partial.rename(file)
    return Pictures(torch.from_numpy(images), scene_rows(scenes))


def both(count: int, seed: int, work: Path, font: Path) -> Pictures:
    """Return pictures of all combinations: nine in ten of trained ones, one in ten of held-out ones."""
    seen, unseen = render(count - count // 10, seed, False, work, font), render(count // 10, seed + count, True, work, font)
    return Pictures(torch.cat([seen.images, unseen.images]), torch.cat([seen.scenes, unseen.scenes]))
