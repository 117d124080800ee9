"""What `rlcm sample` does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import click
from PIL import Image

from rlcm.builtin.vocabulary import CLASSES, COLOURS, unknown_words
from rlcm.cli.work.models import config_of
from rlcm.errors import ConfigError
from rlcm.paths import shown
from rlcm.pipelines import preview_table
from rlcm.pipelines.settings import BUILTIN
from rlcm.policy.noise import SEEDS
from rlcm.report.sheet import contact_sheet
from rlcm.report.words import counted
from rlcm.rewards.image.pixels import to_uint8
from rlcm.runs.own_folder import is_run, refuse_runs
from rlcm.runs.refusals import disk_errors, require_writable
from rlcm.runs.serialization import replacing
from rlcm.sharing import tuned_pipeline
from rlcm.training.prompts import load_prompts
from rlcm.tuning.drawing import draw_images
from rlcm.tuning.saying import quiet, say


def sample(
    model: str,
    prompts: Sequence[str],
    file: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    count: int,
    output: Path,
) -> None:
    """Run `rlcm sample`."""
    quiet()
    if output.suffix.lower() not in ("", ".png", ".jpg", ".jpeg", ".webp") and not output.is_dir():
        raise ConfigError(f"-o {str(output)!r} is not a picture's name; end it in .png, .jpg or .webp, or give a folder.")
    folder = output if output.is_dir() or not output.suffix else output.parent
    if folder == output or not is_run(folder.resolve()):  # in its first level a run has no pictures
        refuse_runs(folder, "rlcm sample")
    require_writable(folder)  # before hours of drawing
    texts = list(prompts)
    if file:
        texts += load_prompts(file, "--prompts", f"A prompt of your own is --prompt {shlex.quote(file)}.").prompts
    base, run = config_of(model)
    if not texts:
        texts = list(load_prompts(base.prompts).prompts[: 1 if count > 1 else 16])
    sampler = base.sampler.drawing(steps, guidance)
    preview_table(base.model, sampler)  # a sampler that does not fit is refused before weights are read
    pipeline = tuned_pipeline(base, run, beside=True)
    images = draw_images(pipeline, base.model, sampler, texts, seed, count)
    pictures = [Image.fromarray(level) for level in to_uint8(images)]
    with disk_errors(output):
        if output.is_dir() or not output.suffix:
            write_each(pictures, texts, seed, count, output)
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            with replacing(output) as temporary:
                contact_sheet(pictures, texts, count).save(temporary)
    seeds = f"seeds {seed} to {seed + count - 1}" if count > 1 else f"seed {seed}"
    click.echo(f"{shown(output)}: {counted(len(images), 'image')} of {counted(len(texts), 'prompt')}, {seeds}")
    if (last := seed + count - 1) >= SEEDS:
        say(f"torch uses the last 32 bits of a seed, so seed {last} draws what seed {last % SEEDS} draws")
    if base.model.path in BUILTIN and (odd := unknown_words(texts)):
        say(
            f"the built-in model does not know {', '.join(odd)}; it draws {', '.join(CLASSES)}, up to four, in {', '.join(COLOURS)}"
        )


def write_each(pictures: Sequence[Image.Image], prompts: Sequence[str], seed: int, count: int, folder: Path) -> None:
    """Write every picture as it is into a folder, under its prompt and its seed."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [re.sub(r"\W+", "-", prompt).strip("-")[:60] or "picture" for prompt in prompts]
    for number, name in enumerate(names):
        own = f"{name}-{number + 1}" if names.count(name) > 1 else name
        for j in range(count):
            with replacing(folder / f"{own}-seed-{seed + j}.png") as temporary:
                pictures[number * count + j].save(temporary)
