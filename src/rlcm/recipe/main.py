"""The recipe: from an emoji font to the packaged weights, stage by stage, each resumable; and the figures of the result."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from rlcm.builtin import WEIGHTS
from rlcm.builtin.renderer import DEFAULT_FONT
from rlcm.distillation.fit import device
from rlcm.errors import ConfigError, MissingFileError
from rlcm.recipe import data, generators, pack, perception
from rlcm.recipe.stages import PICTURES, SEEDS, STAGES
from rlcm.runs.rundir import disk_errors
from rlcm.runs.weights import load_whole


def train_all(work: Path, weights: Path | None, font: Path | None, stages: Sequence[str], threads: int | None) -> None:
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
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(work, weights or WEIGHTS, font or DEFAULT_FONT)
    for stage in STAGES:
        if not stages or stage in stages:
            started = time.monotonic()
            getattr(recipe, stage)()
            print(f"{stage}: done after {time.monotonic() - started:.0f} s in this call", flush=True)


class Recipe:
    """The stages. Each reads what earlier ones packed, trains, and packs its own."""

    def __init__(self, work: Path, weights: Path, font: Path) -> None:
        self.work, self.weights, self.font = work, weights, font

    def pictures(self) -> data.Pictures:
        """Return the training renders."""
        return data.render(PICTURES, data.TRAIN_SEED, False, self.work, self.font)

    def autoencoder(self) -> None:
        """Train the autoencoder."""
        vae = perception.train_autoencoder(self.pictures(), self.work, STAGES["autoencoder"], SEEDS["autoencoder"])
        vae.save_pretrained(self.work / "autoencoder")

    def clip(self) -> None:
        """Train the tokenizer and the small CLIP."""
        tokenizer = perception.make_tokenizer(self.work / "tokenizer")
        clip = perception.train_clip(self.pictures(), tokenizer, self.work, STAGES["clip"], SEEDS["clip"])
        clip.save_pretrained(self.work / "clip")
        pack.pack_clip(clip, tokenizer, self.weights)

    def teacher(self) -> None:
        """Train the diffusion teacher."""
        unet = generators.train_teacher(self._batches(), self.work, STAGES["teacher"], SEEDS["teacher"])
        unet.save_pretrained(self.work / "teacher")
        pack.pack_generator("teacher", unet, self._vae(), self._clip(), self._tokenizer(), self.weights)

    def student(self) -> None:
        """Distill the consistency student."""
        from diffusers import UNet2DConditionModel

        teacher = load_whole(UNet2DConditionModel, self._ready("teacher")).to(device())
        unet = generators.train_student(teacher, self._batches(), self.work, STAGES["student"], SEEDS["student"])
        pack.pack_generator("student", unet, self._vae(), self._clip(), self._tokenizer(), self.weights)

    def judge(self) -> None:
        """Train the held-out judge, on renders of its own."""
        pictures = data.both(PICTURES, data.JUDGE_SEED, self.work, self.font)
        pack.pack_judge(perception.train_judge(pictures, self.work, STAGES["judge"], SEEDS["judge"]), self.weights)

    def _batches(self) -> generators.LatentBatches:
        pictures = self.pictures()
        latents = generators.latents_of(pictures, self._vae().to(device()))
        encoder = pack.text_encoder(self._clip()).to(device())
        return generators.LatentBatches(latents, pictures.scenes, self._tokenizer(), encoder)

    def _vae(self) -> AutoencoderKL:
        vae: AutoencoderKL = load_whole(AutoencoderKL, self._ready("autoencoder")).eval()
        return vae

    def _clip(self) -> CLIPModel:
        clip: CLIPModel = load_whole(CLIPModel, self._ready("clip")).float().eval()
        return clip

    def _tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.work / "tokenizer")

    def _ready(self, stage: str) -> Path:
        if not (self.work / stage).is_dir():
            raise MissingFileError(
                f"{self.work / stage} does not exist; run the stage first: rlcm builtin train --stage {stage}"
            )
        return self.work / stage


def evaluate_all(work: Path, weights: Path | None, font: Path | None) -> None:
    """Measure the packed weights and write `evaluation.json` and the model card beside them.

    Raises:
        MissingFileError: if the folder holds no weights, or the font is missing.
    """
    from rlcm.recipe.card import write_card
    from rlcm.recipe.measure import measure

    folder = weights or WEIGHTS
    if not os.path.isdir(folder / "judge"):
        raise MissingFileError(
            f"--weights {str(folder)!r} holds no built-in model; give the folder that rlcm builtin train --weights wrote, or leave "
            "it out for the packaged one."
        )
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = measure(folder, work, font or DEFAULT_FONT)
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_card(figures, folder)
    print(json.dumps(figures, indent=2))
