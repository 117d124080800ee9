"""Measures the packed weights by the held-out judge, on seeds fixed before training."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcm.builtin.world.detector import Detector, JudgeDetector, RewardDetector
from rlcm.builtin.world.judging import by_kind, diversity, right, sharpness
from rlcm.builtin.world.scenes import draw_asked
from rlcm.builtin.world.vocabulary import TAGS, every, metadata
from rlcm.pipelines import load_pipeline, make_denoiser
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import decode_images, sample_latents
from rlcm.processes.machine import describe_machine
from rlcm.recipe.world.data import TEST_SEED, Batch, Pictures
from rlcm.recipe.world.pack import FOLDERS

COUNTS = (960, 480, 60)
"""How many pictures a figure, a figure of the teacher, and how many prompts for the diversity."""
GUIDANCE = 3.0
STEPS = (1, 2, 4, 8)
TEACHER_STEPS = 50
Sampler = Callable[[list[str], list[int]], Tensor]


def measure(weights: Path, font: Path) -> dict[str, Any]:
    """Return all figures of the model's card. A score is the share of pictures that have what was asked, by the judge."""
    count, teacher_count, prompts = COUNTS
    judge = JudgeDetector.load(weights / FOLDERS["judge"] / "model.safetensors")
    detector = RewardDetector.load(weights / FOLDERS["detector"] / "model.safetensors")
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
        weights / FOLDERS["teacher"], SamplerSettings(scheduler="ddim", steps=TEACHER_STEPS, guidance=GUIDANCE, eta=1.0)
    )
    render_sharpness = sharpness(renders[0].images)
    figures["teacher_50"] = _drawn(teacher, judge, detector, teacher_count, False, render_sharpness)
    for steps in STEPS:
        student = sampler(weights / FOLDERS["student"], SamplerSettings(steps=steps, guidance=GUIDANCE))
        figures[f"student_{steps}"] = _drawn(student, judge, detector, count, False, render_sharpness)
        if steps == 4:
            figures["student_4_held_out"] = _drawn(student, judge, detector, count, True, render_sharpness)
            figures["diversity"] = _diversity(student, judge, prompts)
    return figures


def sampler(folder: Path, settings: SamplerSettings) -> Sampler:
    """Return a function from prompts and seeds to images [B, 3, 64, 64] in [0, 1]."""
    model = ModelSettings(path=str(folder))
    denoiser = make_denoiser(load_pipeline(model), settings, model)

    def sample(prompts: list[str], seeds: list[int]) -> Tensor:
        names = sorted(set(prompts))
        encoded = denoiser.encode(names)
        images = []
        for start in range(0, len(prompts), 60):
            rows = torch.tensor([names.index(prompt) for prompt in prompts[start : start + 60]])
            with torch.no_grad():
                latents = sample_latents(denoiser, denoiser.table, encoded.take(rows), seeds[start : start + 60])
            images.append(decode_images(denoiser, latents))
        return torch.cat(images)

    return sample


def prompts_of_test(count: int, held_out: bool) -> list[dict[str, Any]]:
    """Return metadata of `count` prompts, as many of every kind."""
    tags = [tag for tag in TAGS if every(tag, held_out)]
    rng = np.random.default_rng([TEST_SEED, held_out])
    return [metadata(draw_asked(rng, held_out, {tags[i % len(tags)]: 1.0})) for i in range(count)]


def _drawn(
    sample: Sampler, judge: Detector, detector: Detector, count: int, held_out: bool, render_sharpness: float
) -> dict[str, Any]:
    asked = prompts_of_test(count, held_out)
    started = time.monotonic()
    images = sample([a["prompt"] for a in asked], [image_seed("world", held_out, i) for i in range(count)])
    seconds = time.monotonic() - started
    judged, rewarded = right(judge, images, asked), right(detector, images, asked)
    return {
        "score": _rounded(by_kind(judged, asked)),
        "by_the_rewards_detector": round(by_kind(rewarded, asked)["overall"], 4),
        "detectors_agree": round(float((judged == rewarded).float().mean()), 4),
        "sharpness": round(sharpness(images) / render_sharpness, 4),
        "images_per_second": round(count / seconds, 1),
    }


def _renders(detector: Detector, renders: list[Batch]) -> dict[str, float]:
    asked = [metadata(a) for batch in renders for a in batch.asked]
    return _rounded(by_kind(right(detector, torch.cat([batch.images for batch in renders]), asked), asked))


def _reconstruction(weights: Path, judge: Detector, batch: Batch) -> dict[str, Any]:
    vae = load_pipeline(ModelSettings(path=str(weights / FOLDERS["student"]))).vae
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
    """Return the diversity of the student in 4 steps: see `rlcm.builtin.world.judging.diversity`."""
    prompts = [a["prompt"] for a in prompts_of_test(count, False) for _ in range(each)]
    images = sample(prompts, [image_seed("world diversity", i) for i in range(len(prompts))])
    return round(diversity(judge.features(images), prompts), 4)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
