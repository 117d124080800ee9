"""Real rounds of models with random weights: images a second by phase, and peak memory beside the estimate."""

from __future__ import annotations

import contextlib
import math
import platform
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch
from transformers import AutoTokenizer

from benchmarks.sizes.counting import parts_of
from benchmarks.sizes.shapes import Shape
from rlcm import TrainConfig, Trainer
from rlcm.builtin import model_path
from rlcm.learning.mismatch import standard_distance
from rlcm.pipelines import ModelSettings, estimate


@contextlib.contextmanager
def default_precision(dtype: torch.dtype) -> Iterator[None]:
    """Within it, new networks get this precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Notes:
    """A trainer's watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Take a line for the user."""
        self.notes.append(text)

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        """Take a finished round's metrics."""


def tokenizer() -> Any:
    """Return the built-in model's tokenizer, which also writes a prompt as a message to an assistant, as newer pipelines want it."""
    found = AutoTokenizer.from_pretrained(model_path("clip"))
    found.model_max_length = 77
    found.chat_template = "{% for message in messages %}user {{ message['content'] }} assistant {% endfor %}"
    return found


def has_setting(name: str) -> bool:
    """Return whether this version has such a setting of the model."""
    return name in ModelSettings.model_fields


def measure(
    pipeline: Any,
    shape: Shape,
    *,
    compiled: bool,
    rounds: int,
    pixels: int | None = None,
    resident: int = 0,
    model: Mapping[str, Any] | None = None,
    prompts: str | list[str] = "animals",
) -> dict[str, Any]:
    """Return images a second by phase, the medians of real rounds, and peak memory beside the estimate.

    Also what the check before the first update found, and how far the policy that sampled was from the one that learns.

    Args:
        compiled: by `model.compile` where this version has it.
        rounds: after the first one.
        pixels: height and width of the images; None is the model's own.
        resident: bytes that the process took before the pipeline was made; counts on a CPU only.
        model: more settings of the model.
        prompts: as a configuration names them.
    """
    images = 2 * shape.batch
    config = TrainConfig.model_validate(
        {
            "model": {
                "height": pixels,
                "width": pixels,
                **({"compile": compiled} if has_setting("compile") else {}),
                **(model or {}),
            },
            "prompts": prompts,
            "sampler": shape.sampler.model_dump(),
            "rollout": {"batch_size": images, "sample_batch_size": shape.batch},
            "run": {"micro_batch_size": shape.micro_batch, "tracker": "none"},
            "rewards": ["brightness"],  # cheap, and never the same for two images
            "evaluation": {"images": 2},
        }
    )
    notes = Notes()
    trainer = Trainer(config, model=pipeline, watcher=notes)
    denoiser: Any = trainer.parts.policy.denoiser
    need = estimate(denoiser, shape.batch, shape.micro_batch, training=True)
    if compiled and not has_setting("compile"):
        denoiser.module.compile()
    first = trainer.round()  # warms up, and is checked before it learns
    on_gpu = denoiser.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found = [trainer.round() for _ in range(rounds)]

    def median(key: str) -> float:
        return sorted(metrics[key] for metrics in found)[rounds // 2]

    is_left_out = any(metrics["skipped_updates"] for metrics in (first, *found))
    return {
        "skipped_updates": is_left_out,
        "check": next((note for note in notes.notes if note.startswith("checked:")), None),
        "first_ratio_off_1": first.get("ratio_deviation_max"),
        "mismatch": None if is_left_out else mismatch(median("mismatch_kl"), found, denoiser.latent_shape),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "compiled": compiled,
        "pixels": denoiser.height,
        "threads": torch.get_num_threads(),
        "images_per_second": {
            "sampling": images / median("time/sample"),
            "learning": images / median("time/update"),
            "round": median("images_per_second"),
        },
        "estimated": parts_of(need),
        "measured_peak": torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident,
    }


def mismatch(kl: float, found: Sequence[Mapping[str, float]], latent: Sequence[int]) -> dict[str, float]:
    """Return how far the policy that sampled was from the one that learns: nats per action, on the ratio, in stds per entry."""
    ratio = max(metrics["mismatch_ratio_max"] for metrics in found)
    return {"kl": kl, "ratio_off_1": ratio, "stds": standard_distance(kl, math.prod(latent))}


def measure_full_size(shape: Shape, *, compiled: bool, pixels: int | None = None) -> dict[str, Any]:
    """Return `measure` of a model of this shape with random weights: in bf16 on a GPU, a small round in fp32 on a CPU."""
    on_gpu = torch.cuda.is_available()
    resident = psutil.Process().memory_info().rss
    with torch.device("cuda" if on_gpu else "cpu"), default_precision(torch.bfloat16 if on_gpu else torch.float32):
        pipeline = shape.pipeline(tokenizer(), not on_gpu)
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "vae"):
        pipeline.vae.enable_slicing()
    if not on_gpu:
        shape = replace(shape, batch=1, micro_batch=1, sampler=shape.sampler.model_copy(update={"steps": 2}))
    return measure(pipeline, shape, compiled=compiled, rounds=3 if on_gpu else 1, pixels=pixels, resident=resident)
