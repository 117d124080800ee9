"""Measures the packed weights by the held-out judge, on seeds fixed before training, at least 1,000 images a figure."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcm.builtin import PARTS
from rlcm.builtin.judge import Judge
from rlcm.builtin.renderer import Renderer, random_scenes
from rlcm.builtin.vocabulary import Scene, caption
from rlcm.pipelines import load_pipeline, make_denoiser
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import decode_images, sample_latents
from rlcm.processes.machine import describe_machine
from rlcm.recipe.data import HELD_OUT_SEED, Pictures, render, scene_rows
from rlcm.training.evaluate import guard

COUNT = 1000
TEACHER_GUIDANCE, STUDENT_GUIDANCE = 3.0, 3.0
Sampler = Callable[[list[str], list[int]], Tensor]


def measure(weights: Path, work: Path, font: Path) -> dict[str, Any]:
    """Return all figures of the built-in model's card."""
    judge = Judge.load(weights / PARTS["judge"])
    seen = render(COUNT, HELD_OUT_SEED, False, work, font)
    unseen = render(COUNT, HELD_OUT_SEED + COUNT, True, work, font)
    figures: dict[str, Any] = {
        "machine": describe_machine(),
        "images_each": COUNT,
        "judge_on_renders": _accuracy(judge, seen.floats(torch.device("cpu")), seen.scenes),
        "judge_on_renders_of_held_out_combinations": _accuracy(judge, unseen.floats(torch.device("cpu")), unseen.scenes),
        "autoencoder": _reconstruction(weights, judge, seen),
    }
    teacher = _sampler(
        weights / PARTS["teacher"], SamplerSettings(scheduler="ddim", steps=50, guidance=TEACHER_GUIDANCE, eta=1.0)
    )
    figures["teacher_ddim_50"] = _drawn(judge, teacher, held_out=False)
    for steps in (8, 4, 2, 1):
        student = _sampler(weights / PARTS["student"], SamplerSettings(steps=steps, guidance=STUDENT_GUIDANCE))
        figures[f"student_{steps}"] = _drawn(judge, student, held_out=False)
        if steps == 4:
            figures["student_4_held_out_combinations"] = _drawn(judge, student, held_out=True)
            figures["diversity"] = _diversity(student, work, font)
    return figures


def _sampler(folder: Path, settings: SamplerSettings) -> Sampler:
    model = ModelSettings(path=str(folder))
    denoiser = make_denoiser(load_pipeline(model), settings, model)

    def sample(prompts: list[str], seeds: list[int]) -> Tensor:
        names = sorted(set(prompts))
        encoded = denoiser.encode(names)
        images = []
        for start in range(0, len(prompts), 100):
            rows = torch.tensor([names.index(prompt) for prompt in prompts[start : start + 100]])
            with torch.no_grad():
                latents = sample_latents(denoiser, denoiser.table, encoded.take(rows), seeds[start : start + 100])
            images.append(decode_images(denoiser, latents))
        return torch.cat(images)

    return sample


def _drawn(judge: Judge, sample: Sampler, *, held_out: bool) -> dict[str, float]:
    scenes = random_scenes(COUNT, HELD_OUT_SEED + 7, held_out)
    started = time.monotonic()
    images = sample([caption(s) for s in scenes], [image_seed("builtin evaluation", held_out, i) for i in range(COUNT)])
    seconds = time.monotonic() - started
    return _accuracy(judge, images, scene_rows(scenes)) | {"images_per_second": round(COUNT / seconds, 1)}


def _accuracy(judge: Judge, images: Tensor, scenes: Tensor) -> dict[str, float]:
    animal, colour = judge.name(images)
    right = (animal == scenes[:, 0]).float().mean().item(), (colour == scenes[:, 1]).float().mean().item()
    return {"animal": round(right[0], 4), "colour": round(right[1], 4)}


def _reconstruction(weights: Path, judge: Judge, pictures: Pictures) -> dict[str, float]:
    vae = load_pipeline(ModelSettings(path=str(weights / PARTS["student"]))).vae
    images = pictures.floats(torch.device("cpu"))
    with torch.no_grad():
        parts = [vae.decode(vae.encode(part * 2 - 1).latent_dist.mode()).sample for part in images.split(100)]
    decoded = (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
    error = (decoded - images).square().flatten(1).mean(1)
    psnr = {
        "psnr_db": round(-10 * error.mean().log10().item(), 2),
        "mean_of_psnr_db": round((-10 * error.log10()).mean().item(), 2),
    }
    return psnr | _accuracy(judge, decoded, pictures.scenes)


def _diversity(sample: Sampler, work: Path, font: Path) -> dict[str, float]:
    """Return the mean distance (see `rlcm.training.evaluate.guard`) of two pictures of one prompt: renders, and samples."""
    scenes = [Scene(animal, (animal * 3) % 10, animal % 5) for animal in range(45)]
    prompts = [caption(scene) for scene in scenes for _ in range(8)]
    drawn = sample(prompts, [image_seed("builtin diversity", i) for i in range(len(prompts))])
    renderer = Renderer(font)
    arrays = [renderer.draw(scene, HELD_OUT_SEED + 5000 + k) for scene in scenes for k in range(8)]
    rendered = torch.stack([torch.tensor(array).permute(2, 0, 1).float() / 255 for array in arrays])
    return {
        "renders": round(guard(rendered, prompts)["diversity"], 4),
        "samples": round(guard(drawn, prompts)["diversity"], 4),
    }
