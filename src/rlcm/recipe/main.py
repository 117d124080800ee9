"""The recipe: from an emoji font to the packaged weights, stage by stage, each resumable; and the figures of the result."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from rlcm.builtin import WEIGHTS
from rlcm.builtin.detector import Detector, JudgeDetector, RewardDetector
from rlcm.builtin.renderer import DEFAULT_FONT
from rlcm.builtin.vocabulary import Asked
from rlcm.distillation.fit import Fit, device
from rlcm.errors import ConfigError, MissingFileError
from rlcm.recipe import autoencoder, clip, data, detectors, hard, latents, pack, student, teacher
from rlcm.recipe import stages as plan
from rlcm.recipe import words as text
from rlcm.runs.refusals import disk_errors


def train_all(work: Path, weights: Path | None, font: Path | None, stages: Sequence[str], threads: int | None) -> None:
    """Run the stages (all, or those named) and pack the weights.

    Raises:
        ConfigError: if there is no such stage.
        MissingFileError: if the font, or a stage that another one needs, is missing.
    """
    names = [*plan.STAGES, plan.PACK]
    unknown = set(stages) - set(names)
    if unknown:
        raise ConfigError(f"--stage {', '.join(sorted(unknown))}: there is no such stage; use {', '.join(names)}.")
    if threads:
        torch.set_num_threads(threads)
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(work, weights or WEIGHTS, font or DEFAULT_FONT)
    for stage in names:
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
        vae = autoencoder.train_autoencoder(self.pictures(), *self._how("autoencoder"))
        vae.save_pretrained(self.work / "autoencoder")

    def detector(self) -> None:
        """Train the detector that rewards ask."""
        self._detector("detector", RewardDetector, data.REWARD_SEED)

    def judge(self) -> None:
        """Train the held-out judge."""
        self._detector("judge", JudgeDetector, data.JUDGE_SEED)

    def teacher(self) -> None:
        """Train the diffusion teacher and the text encoder."""
        words = latents.Captions(self._tokenizer(), text.new_text_encoder(self._tokenizer()))
        known, asked = self._latents()
        unet = teacher.train_teacher(known, asked, words, *self._how("teacher"))
        unet.save_pretrained(self.work / "teacher")
        words.encoder.save_pretrained(self.work / "text_encoder")

    def student(self) -> None:
        """Solve the teacher's trajectories and distil the consistency student."""
        unet = UNet2DConditionModel.from_pretrained(self._ready("teacher")).to(device()).eval().requires_grad_(False)
        words = latents.Captions(self._tokenizer(), self._text_encoder().to(device()))
        solved = student.solve_trajectories(
            unet,
            *self._latents(),
            words,
            plan.TRAJECTORIES,
            self.work / "trajectories",
            plan.SEEDS["student"],
            plan.BATCH["trajectories"],
        )
        distilled = student.train_student(unet, solved, words, *self._how("student"))
        distilled.save_pretrained(self.work / "student")

    def detector_hard(self) -> None:
        """Train the rewards' detector on what the model spoils."""
        self._harden("detector", RewardDetector, data.REWARD_SEED + 1)

    def judge_hard(self) -> None:
        """Train the judge on what the model spoils."""
        self._harden("judge", JudgeDetector, data.JUDGE_SEED + 1)

    def clip(self) -> None:
        """Train the small CLIP."""
        trained = clip.train_clip(self.pictures(), self._tokenizer(), *self._how("clip"))
        trained.save_pretrained(self.work / "clip")

    def pack(self) -> None:
        """Write all parts as the package holds them."""
        vae, encoder, tokenizer = self._vae(), self._text_encoder(), self._tokenizer()
        for kind in ("teacher", "student"):
            unet = UNet2DConditionModel.from_pretrained(self._ready(kind))
            pack.pack_generator(kind, unet, vae, encoder, tokenizer, self.weights)
        pack.pack_clip(CLIPModel.from_pretrained(self._ready("clip")).float(), tokenizer, self.weights)
        detectors_of: dict[str, type[Detector]] = {"detector": RewardDetector, "judge": JudgeDetector}
        for name, detector in detectors_of.items():
            trained = detector.load(self._ready(f"{name}_hard") / "model.safetensors")
            pack.pack_detector(trained, self.weights / name)

    def _harden(self, name: str, kind: type[Detector], seed: int) -> None:
        stage = f"{name}_hard"
        unet = UNet2DConditionModel.from_pretrained(self._ready("teacher")).to(device()).eval()
        words = latents.Captions(self._tokenizer(), self._text_encoder().to(device()))
        spoiler = hard.Spoiler(self._vae().to(device()), unet, words)
        begun = kind.load(self._ready(name) / "model.safetensors").requires_grad_(True)
        pictures, breaker = data.Pictures(self.font, seed, held_out=None), detectors.new_breaker(self.font, seed)
        trained = detectors.train_detector(stage, begun, pictures, breaker, *self._how(stage), hard=spoiler)
        pack.pack_detector(trained, self.work / stage)

    def _how(self, stage: str) -> tuple[Path, Fit, int, int]:
        """Return what every training takes: where its checkpoint lies, how it learns, its seed and the size of its batches."""
        return self.work, plan.STAGES[stage], plan.SEEDS[stage], plan.BATCH[stage]

    def _vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self._ready("autoencoder")).eval()

    def _latents(self) -> tuple[torch.Tensor, list[Asked]]:
        return latents.encode(self.pictures(), self._vae().to(device()), plan.PICTURES, self.work / "latents.safetensors")

    def _text_encoder(self) -> CLIPTextModel:
        return CLIPTextModel.from_pretrained(self._ready("text_encoder")).float().eval().requires_grad_(False)

    def _tokenizer(self) -> CLIPTokenizer:
        folder = self.work / "tokenizer"
        return CLIPTokenizer.from_pretrained(folder) if folder.is_dir() else text.make_tokenizer(folder)

    def _detector(self, name: str, kind: type[Detector], seed: int) -> None:
        torch.manual_seed(plan.SEEDS[name])
        pictures, breaker = data.Pictures(self.font, seed, held_out=None), detectors.new_breaker(self.font, seed)
        trained = detectors.train_detector(name, kind(), pictures, breaker, *self._how(name))
        pack.pack_detector(trained, self.work / name)

    def _ready(self, stage: str) -> Path:
        if not (self.work / stage).exists():
            raise MissingFileError(
                f"{self.work / stage} does not exist; run the stage first: rlcm builtin train --stage {stage}"
            )
        return self.work / stage


def evaluate_all(work: Path, weights: Path | None, font: Path | None) -> None:
    """Measure the packed weights and write `evaluation.json` and the model card beside them, and pictures to look at in `work`.

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
    figures = measure(folder, font or DEFAULT_FONT, work / "look")
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_card(figures, work, folder)
    print(json.dumps(figures, indent=2))
