"""The recipe of the world's model: from an emoji font to the packaged weights, stage by stage, each resumable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rlcm.builtin.world.detector import Detector, JudgeDetector, RewardDetector
from rlcm.builtin.world.renderer import DEFAULT_FONT
from rlcm.errors import ConfigError, MissingFileError
from rlcm.recipe.world import autoencoder, data, detectors, pack
from rlcm.recipe.world.stages import SEEDS, STAGES


def train_all(work: Path, weights: str | None, font: str | None, stages: Sequence[str], threads: int | None) -> None:
    """Run the stages (all, or those named) and pack the weights.

    Raises:
        ConfigError: if there is no such stage.
        MissingFileError: if the font, or a stage that another one needs, is missing.
    """
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise ConfigError(f"--stage {', '.join(sorted(unknown))}: there is no such stage; use {', '.join(STAGES)}.")
    if threads:
        torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(work, Path(weights) if weights else work / "weights", Path(font or DEFAULT_FONT))
    for stage in STAGES:
        if not stages or stage in stages:
            started = time.monotonic()
            getattr(recipe, stage)()
            print(f"{stage}: done after {time.monotonic() - started:.0f} s in this call", flush=True)


class Recipe:
    """The stages. Each reads what earlier ones left in `work`, trains, and leaves its own."""

    def __init__(self, work: Path, weights: Path, font: Path) -> None:
        self.work, self.weights, self.font = work, weights, font

    def pictures(self) -> data.Pictures:
        """Return the pictures that a generator may see."""
        return data.Pictures(self.font, data.GENERATOR_SEED, held_out=False)

    def autoencoder(self) -> None:
        """Train the autoencoder."""
        vae = autoencoder.train_autoencoder(self.pictures(), self.work, STAGES["autoencoder"], SEEDS["autoencoder"])
        vae.save_pretrained(self.work / "autoencoder")

    def detector(self) -> None:
        """Train the detector that rewards ask."""
        self._detector("detector", RewardDetector, data.REWARD_SEED)

    def judge(self) -> None:
        """Train the held-out judge."""
        self._detector("judge", JudgeDetector, data.JUDGE_SEED)

    def _detector(self, name: str, kind: type[Detector], seed: int) -> None:
        torch.manual_seed(SEEDS[name])
        pictures, breaker = data.Pictures(self.font, seed, held_out=None), detectors.new_breaker(self.font, seed)
        trained = detectors.train_detector(name, kind(), pictures, breaker, self.work, STAGES[name], SEEDS[name])
        pack.pack_detector(trained, self.work / name)

    def _ready(self, stage: str) -> Path:
        if not (self.work / stage).exists():
            raise MissingFileError(
                f"{self.work / stage} does not exist; run the stage first: rlcm builtin train --stage {stage}"
            )
        return self.work / stage
