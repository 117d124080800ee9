"""Measures the packed weights by the held-out judge, on seeds fixed before training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcm.builtin import PARTS
from rlcm.builtin.detector import Detector, JudgeDetector, RewardDetector
from rlcm.builtin.judging import by_kind, right, sharpness
from rlcm.builtin.scenes import draw_asked
from rlcm.builtin.verdict import Found
from rlcm.builtin.vocabulary import TAGS, every, metadata
from rlcm.pipelines import load_pipeline, make_denoiser
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import pictures_of
from rlcm.processes.machine import describe_machine
from rlcm.recipe.data import TEST_SEED, Batch, Pictures
from rlcm.runs.rundir import grid
from rlcm.training.diversity import mean_distance

COUNTS = (960, 480, 60)
"""How many pictures a figure, a figure of the teacher, and how many prompts for the diversity."""
GUIDANCE = 3.0
STEPS = (1, 2, 4, 8)
TEACHER_STEPS = 50
Sampler = Callable[[list[str], list[int]], Tensor]


def measure(weights: Path, font: Path, look: Path) -> dict[str, Any]:
    """Return all figures of the model's card. A score is the share of pictures that have what was asked, by the judge.

    Args:
        look: a folder for what is to be looked at: 72 pictures of every set, the kinds in turn, and those on which the two detectors
            disagree, with what each of them says.
    """
    look.mkdir(parents=True, exist_ok=True)
    count, teacher_count, prompts = COUNTS
    judge = JudgeDetector.load(weights / PARTS["judge"])
    detector = RewardDetector.load(weights / PARTS["detector"])
    renders = [Pictures(font, TEST_SEED, None).batch(count, i, dict.fromkeys(TAGS, 1.0)) for i in range(2)]
    figures: dict[str, Any] = {
        "machine": describe_machine(),
        "images_each": count,
        "images_of_the_teacher": teacher_count,
        "judge_on_renders": _renders(judge, renders),
        "detector_on_renders": _renders(detector, renders),
        "autoencoder": _reconstruction(weights, judge, renders[0]),
    }
    teacher = sampler(
        weights / PARTS["teacher"], SamplerSettings(scheduler="ddim", steps=TEACHER_STEPS, guidance=GUIDANCE, eta=1.0)
    )
    measured = _Measured(judge, detector, sharpness(renders[0].images), look)
    figures["teacher_50"] = measured.drawn(teacher, "teacher-50", teacher_count, held_out=False)
    for steps in STEPS:
        student = sampler(weights / PARTS["student"], SamplerSettings(steps=steps, guidance=GUIDANCE))
        figures[f"student_{steps}"] = measured.drawn(student, f"student-{steps}", count, held_out=False)
        if steps == 4:
            figures["student_4_held_out"] = measured.drawn(student, "student-4-held-out", count, held_out=True)
            figures["diversity"] = _diversity(student, judge, prompts)
    return figures


def sampler(folder: Path, settings: SamplerSettings) -> Sampler:
    """Return a function from prompts and seeds to images [B, 3, 64, 64] in [0, 1]."""
    model = ModelSettings(path=str(folder))
    denoiser = make_denoiser(load_pipeline(model), settings, model)

    def sample(prompts: list[str], seeds: list[int]) -> Tensor:
        return pictures_of(denoiser, prompts, seeds, 60)

    return sample


def prompts_of_test(count: int, held_out: bool) -> list[dict[str, Any]]:
    """Return metadata of `count` prompts, as many of every kind."""
    tags = [tag for tag in TAGS if every(tag, held_out)]
    rng = np.random.default_rng([TEST_SEED, held_out])
    return [metadata(draw_asked(rng, held_out, {tags[i % len(tags)]: 1.0})) for i in range(count)]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What pictures are measured with."""

    judge: Detector
    detector: Detector
    render_sharpness: float
    look: Path

    def drawn(self, sample: Sampler, name: str, count: int, *, held_out: bool) -> dict[str, Any]:
        """Return the figures of `count` pictures, and leave some of them to be looked at."""
        asked = prompts_of_test(count, held_out)
        started = time.monotonic()
        images = sample([a["prompt"] for a in asked], [image_seed("world", held_out, i) for i in range(count)])
        seconds = time.monotonic() - started
        judged, rewarded = right(self.judge, images, asked), right(self.detector, images, asked)
        grid(images[:72], 12).save(self.look / f"{name}.png")
        self._disagreements(name, images, asked, (judged != rewarded).nonzero().flatten()[:24])
        return {
            "score": _rounded(by_kind(judged, asked)),
            "by_the_rewards_detector": round(by_kind(rewarded, asked)["overall"], 4),
            "detectors_agree": round(float((judged == rewarded).float().mean()), 4),
            "sharpness": round(sharpness(images) / self.render_sharpness, 4),
            "images_per_second": round(count / seconds, 1),
        }

    def _disagreements(self, name: str, images: Tensor, asked: list[dict[str, Any]], rows: Tensor) -> None:
        if not len(rows):
            return
        grid(images[rows], 12).save(self.look / f"{name}-disagreements.png")
        seen = [[_said(things) for things in d.find(images[rows])] for d in (self.judge, self.detector)]
        lines = [
            f"{asked[int(row)]['prompt']}\n  judge: {by_judge}\n  rewards' detector: {by_detector}\n"
            for row, by_judge, by_detector in zip(rows, *seen, strict=True)
        ]
        (self.look / f"{name}-disagreements.txt").write_text("".join(lines))


def _said(things: list[Found]) -> str:
    return ", ".join(
        f"{t.colour or ''} {t.name} {t.confidence:.2f} at {t.centre[0]:.2f} {t.centre[1]:.2f}".strip() for t in things
    )


def _renders(detector: Detector, renders: list[Batch]) -> dict[str, float]:
    asked = [metadata(a) for batch in renders for a in batch.asked]
    return _rounded(by_kind(right(detector, torch.cat([batch.images for batch in renders]), asked), asked))


def _reconstruction(weights: Path, judge: Detector, batch: Batch) -> dict[str, Any]:
    vae = load_pipeline(ModelSettings(path=str(weights / PARTS["student"]))).vae
    with torch.no_grad():
        parts = [vae.decode(vae.encode(part * 2 - 1).latent_dist.mode()).sample for part in batch.images.split(60)]
    decoded = (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
    error = (decoded - batch.images).square().mean()
    asked = [metadata(a) for a in batch.asked]
    return {
        "psnr_db": round(-10 * float(error.log10()), 2),
        "score": _rounded(by_kind(right(judge, decoded, asked), asked)),
        "score_of_the_renders": _rounded(by_kind(right(judge, batch.images, asked), asked)),
        "sharpness": round(sharpness(decoded) / sharpness(batch.images), 4),
    }


def _diversity(sample: Sampler, judge: JudgeDetector, count: int, each: int = 8) -> float:
    """Return the diversity of the student in 4 steps: see `rlcm.builtin.judging.diversity`."""
    prompts = [a["prompt"] for a in prompts_of_test(count, False) for _ in range(each)]
    images = sample(prompts, [image_seed("world diversity", i) for i in range(len(prompts))])
    return round(mean_distance(judge.features(images), prompts), 4)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
