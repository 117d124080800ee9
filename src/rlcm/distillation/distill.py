"""`rlcm distill`: from a diffusion pipeline of diffusers with a UNet to its few-step consistency pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionXLPipeline
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from rlcm.distillation.fit import Fit, fit
from rlcm.distillation.loss import Distiller, NoiseSchedule, student_of
from rlcm.errors import ConfigError, MissingFileError, UnreadableFileError
from rlcm.paths import local
from rlcm.pipelines import load_pipeline, make_denoiser
from rlcm.pipelines.contents import model_contents
from rlcm.pipelines.described import INDEX
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.processes.usual import usual_torch
from rlcm.rewards.image.pixels import read_picture
from rlcm.runs import digests
from rlcm.runs.files import read_json
from rlcm.runs.own_folder import OwnFolder
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_json
from rlcm.settings import Settings
from rlcm.text_files import lines_of, read_text
from rlcm.training.config import parse_settings, read_values
from rlcm.types import Conditioning


class DistillConfig(Settings):
    """What is distilled, on which pictures, for how long."""

    model: ModelSettings = ModelSettings(path="builtin-teacher")
    """The diffusion pipeline: StableDiffusionPipeline or StableDiffusionXLPipeline."""
    data: str
    """Folder of pictures with a metadata.jsonl: one {"file_name": ..., "text": ...} a line."""
    output: str
    """Folder that gets the consistency pipeline, and `work/` with checkpoint and log, from which a second call goes on."""
    updates: int = Field(default=2000, ge=1, le=1_000_000_000)
    """Optimiser steps."""
    batch_size: int = Field(default=16, ge=1, le=100_000)
    """Pictures a step."""
    lr: float = Field(default=1e-5, gt=0, le=1)
    """Peak learning rate of AdamW."""
    guidance: tuple[float, float] = (1.0, 8.0)
    """Range of the guidance scales that the student can be asked for, from 0 to 100, the smaller first."""
    solver_steps: int = Field(default=50, ge=2, le=1000)
    """Length of the teacher's DDIM grid; `original_inference_steps` of the result."""
    first_jump: int = Field(default=1, ge=1, le=1000)
    """Grid cells of a solver jump at the start; it shrinks to 1 over the first half. 1 is the published algorithm."""
    target_decay: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the slow copy that gives the targets."""
    huber_c: float = Field(default=1e-3, gt=0)
    """Width of the quadratic part of the pseudo-Huber distance."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the average of the student's weights, which is the result."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of noise, order and guidance."""

    @model_validator(mode="after")
    def _fits(self) -> DistillConfig:
        low, high = self.guidance
        if not 0 <= low <= high <= 100:
            raise ValueError(
                f"guidance=[{low:g}, {high:g}] is no range of 0 .. 100; write the smaller first, as in guidance=[1, 8]."
            )
        if self.first_jump >= self.solver_steps:
            raise ValueError(
                f"first_jump={self.first_jump} is as long as the grid of solver_steps={self.solver_steps}; use 1 .. "
                f"{self.solver_steps - 1}."
            )
        return self


def run_distillation(config: str, changes: Sequence[str]) -> Path:
    """Distill as a YAML file says and return the folder of the consistency pipeline.

    Raises:
        ConfigError: if the file, the model or the data do not fit.
    """
    return distill(parse_settings(DistillConfig, read_values(config, changes, DistillConfig)))


@usual_torch()
def distill(settings: DistillConfig) -> Path:
    """Distill and return the folder of the consistency pipeline.

    Raises:
        UsageError: if the output is a run, or a pipeline that was not distilled into it; ConfigError, MissingFileError: before
            anything expensive.
    """
    if settings.model.quantisation != "none":
        raise ConfigError(
            f"model.quantisation={settings.model.quantisation}: distillation trains all weights, which takes whole ones; use none."
        )
    output, pictures = local(settings.output, "output").absolute(), CaptionedPictures(local(settings.data, "data"))
    own = OwnFolder(output, "rlcm distill", [INDEX], _has_student, option="output=")
    own.require()
    pipeline = load_pipeline(settings.model)
    if not hasattr(pipeline, "unet") or not hasattr(pipeline, "vae"):
        raise ConfigError(
            f"model.path={settings.model.path!r} is a {type(pipeline).__name__}; distillation takes a latent diffusion pipeline "
            "with a UNet (StableDiffusionPipeline, StableDiffusionXLPipeline)."
        )
    if pipeline.unet.config.time_cond_proj_dim is not None:
        raise ConfigError(f"model.path={settings.model.path!r} is a consistency model already; distill its diffusion teacher.")
    work = output / "work"
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    _pin(settings, pictures, work)
    # Guidance 1: the denoiser then encodes prompts without their negatives.
    denoiser = make_denoiser(pipeline, SamplerSettings(scheduler="ddim", steps=2, guidance=1.0), settings.model)
    scheduler = LCMScheduler.from_config(
        pipeline.scheduler.config, original_inference_steps=settings.solver_steps, clip_sample=False, set_alpha_to_one=True
    )
    torch.manual_seed(settings.seed)
    teacher = pipeline.unet
    student = student_of(teacher).float()
    device = denoiser.device
    time_ids = getattr(denoiser, "time_ids", None)

    def run(unet: Any, x: Tensor, t: Tensor, conditioning: Conditioning, timestep_cond: Tensor | None) -> Tensor:
        dtype = next(unet.parameters()).dtype
        cast = {key: value.to(dtype) for key, value in conditioning.items()}
        extra = {}
        if time_ids is not None:
            ids = time_ids.to(dtype).expand(len(x), -1)
            extra["added_cond_kwargs"] = {"text_embeds": cast["pooled"], "time_ids": ids}
        scale = None if timestep_cond is None else timestep_cond.to(dtype)
        return unet(x.to(dtype), t, encoder_hidden_states=cast["embeddings"], timestep_cond=scale, **extra).sample.float()

    distiller = Distiller(
        teacher,
        student,
        NoiseSchedule.of(scheduler),
        solver_steps=settings.solver_steps,
        target_decay=settings.target_decay,
        run=run,
    )
    empty = denoiser.encode([""])

    def loss(rng: torch.Generator, progress: float) -> dict[str, Tensor]:
        distiller.follow()
        images, texts = pictures.draw(settings.batch_size, rng, (denoiser.height, denoiser.width))
        with torch.no_grad():
            x_0 = _encode(pipeline.vae, images.to(device))
        jump = max(1, round(settings.first_jump - 2 * (settings.first_jump - 1) * progress))
        value = distiller.loss(
            x_0,
            denoiser.encode(texts),
            empty.repeat_interleave(len(texts)),
            rng,
            guidance=settings.guidance,
            jump=jump,
            huber_c=settings.huber_c,
        )
        return {"loss": value}

    plan = Fit(settings.updates, lr=settings.lr, ema=settings.ema, warmup=min(50, settings.updates))
    fit("student", student, loss, plan, work, settings.seed, companion=distiller.target)
    own.begin()
    _save(pipeline, student, scheduler, output)
    own.end()
    return output


def _pin(settings: DistillConfig, pictures: CaptionedPictures, work: Path) -> None:
    """Note what the work depends on when it begins, and refuse to go on with it from anything else; more `updates` are the same.

    Raises:
        ConfigError: if a setting, the pictures or the model are others than it began with.
    """
    file = work / "depends_on.json"
    own = settings.model_dump(mode="json", exclude={"updates", "output", "data", "model"})
    found = {"settings": own, "data": pictures.digest(), "model": model_contents(settings.model)}
    if not (work / "student.safetensors").exists():
        with disk_errors(work):
            write_json(file, found)
        return
    try:
        begun = read_json(file)
    except UnreadableFileError:
        return  # of a version that did not note it
    wrong = [f"{name}={value!r}, not {own[name]!r}" for name, value in begun["settings"].items() if own.get(name) != value]
    wrong += [f"other {what}" for what in ("data", "model") if begun[what] != found[what]]
    if wrong:
        raise ConfigError(
            f"{work} was begun with {'; '.join(wrong)}. Go on with what it began with, take another output=, or delete {work} to begin "
            "again."
        )


def _has_student(output: Path) -> bool:
    return any((output / "work").glob("student*"))


class CaptionedPictures:
    """Pictures with their captions, read when they are drawn.

    Raises:
        MissingFileError: if the folder, its metadata.jsonl or a picture is missing.
        ConfigError: if a line of it is not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "metadata.jsonl"
        if not folder.is_dir():
            raise MissingFileError(f"data={str(folder)!r} is no folder; give one of pictures with a metadata.jsonl.")
        if not index.is_file():
            raise MissingFileError(
                f'data={str(folder)!r} has no metadata.jsonl; write one with a line {{"file_name": "a.png", "text": "a fox"}} '
                "for each picture."
            )
        self.rows: list[tuple[Path, str]] = []
        try:
            lines = lines_of(read_text(index))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{index} cannot be read: {error}.") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                file, text = folder / row["file_name"], row["text"]
                if not isinstance(text, str):
                    raise TypeError("text is no text")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ConfigError(f"{index}, line {number}: {line[:80]!r} lacks file_name or text ({error}).") from error
            if not file.is_file():
                raise MissingFileError(f"{index}, line {number}: {file} does not exist.")
            self.rows.append((file, text))
        if not self.rows:
            raise ConfigError(f"{index} names no pictures; give at least one.")

    def digest(self) -> str:
        """Return the digest of the captions, and of the names and sizes of the pictures."""
        return digests.of_value([[file.name, file.stat().st_size, text] for file, text in self.rows])

    def draw(self, count: int, rng: torch.Generator, size: tuple[int, int]) -> tuple[Tensor, list[str]]:
        """Return `count` random pictures [count, 3, h, w] in [-1, 1], cropped to `size` = (h, w), and their captions."""
        chosen = [self.rows[i] for i in torch.randint(len(self.rows), (count,), generator=rng).tolist()]
        return torch.stack([_read(file, size) for file, _ in chosen]), [text for _, text in chosen]


def _read(file: Path, size: tuple[int, int]) -> Tensor:
    height, width = size
    picture = Image.fromarray(read_picture(file))
    scale = max(height / picture.height, width / picture.width)
    picture = picture.resize((max(width, round(picture.width * scale)), max(height, round(picture.height * scale))))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def _encode(vae: Any, images: Tensor) -> Tensor:
    return vae.encode(images.to(vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor


def _save(pipeline: Any, student: Any, scheduler: LCMScheduler, output: Path) -> None:
    parts = {name: part for name, part in pipeline.components.items() if name not in ("unet", "scheduler")}
    kind = type(pipeline) if isinstance(pipeline, StableDiffusionXLPipeline) else LatentConsistencyModelPipeline
    if kind is LatentConsistencyModelPipeline:
        parts["requires_safety_checker"] = False
    with disk_errors(output):
        kind(unet=student, scheduler=scheduler, **parts).save_pretrained(output, safe_serialization=True)
