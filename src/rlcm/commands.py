"""What the commands do; imported only by the command that runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from rlcm.builtin import DEMO
from rlcm.config import TrainConfig, load_config
from rlcm.errors import CheckpointError, ConfigError, MissingFileError
from rlcm.export import WEIGHTS_NAME
from rlcm.pipelines import load_pipeline, make_denoiser
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.prompts import load_prompts
from rlcm.rollout import decode_images, sample_latents
from rlcm.rundir import disk_errors, grid
from rlcm.trainer import Trainer


def quiet() -> None:
    """Silence what libraries say about themselves; the product's own words stay."""
    import diffusers
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def train(config: str | None, changes: Sequence[str], resume: str | None) -> None:
    """Run `rlcm train`."""
    quiet()
    from rlcm.progress import ConsoleProgress

    with ConsoleProgress() as progress:
        if resume is not None:
            trainer = Trainer.resume(latest_run() if resume == "latest" else Path(resume), watcher=progress)
        else:
            trainer = Trainer(load_config(config or DEMO, changes), watcher=progress)
        folder = trainer.train()
    before, after = trainer.evaluations[0], trainer.evaluations[-1]
    click.echo(f"reward {before['reward']['mean']:.4g} -> {after['reward']['mean']:.4g} on {after['images']} fixed images")
    for question, value in (after["judge"] or {}).items():
        click.echo(f"held-out judge, {question}: {before['judge'][question]['mean']:.1%} -> {value['mean']:.1%}")
    if (folder / "final" / WEIGHTS_NAME).exists():
        click.echo(f"page     {folder / 'report.html'}\nLoRA     {folder / 'final' / WEIGHTS_NAME}")
        click.echo(f"try it   rlcm sample {folder} --n 8")


def latest_run(output: Path = Path("runs")) -> Path:
    """Return the folder of the run that was changed last.

    Raises:
        CheckpointError: if there is none.
    """
    runs = sorted(output.glob("*/config.yaml"), key=lambda file: (file.parent / "metrics.jsonl").stat().st_mtime_ns
                  if (file.parent / "metrics.jsonl").exists() else 0)  # fmt: skip
    if not runs:
        raise CheckpointError(f"--resume latest: there is no run in {output}/; name the run's folder.")
    return runs[-1].parent


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
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"-o {str(output)!r} is not a picture's name; end it in .png, .jpg or .webp.")
    texts = list(prompts) + (list(load_prompts(file).prompts) if file else [])
    run = Path(model) if (Path(model) / "config.yaml").is_file() else None
    base = load_config(run / "config.yaml") if run else TrainConfig(model=ModelSettings(path=model))
    if not texts:
        texts = list(load_prompts(base.prompts).prompts[: 1 if count > 1 else 16])
    change: dict[str, Any] = {"final_std": 0.0}
    change |= {"steps": steps, "timesteps": None} if steps else {}
    change |= {"guidance": guidance} if guidance is not None else {}
    pipeline = tuned_pipeline(base, run)
    images = draw_images(pipeline, base.model, base.sampler.model_copy(update=change), texts, seed, count)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        columns = count if count > 1 else min(8, len(texts))
        grid(images, columns).save(output)
    click.echo(f"{output}: {len(images)} images of {len(texts)} prompts, seeds {seed} to {seed + count - 1}")


def tuned_pipeline(config: TrainConfig, run: Path | None) -> Any:
    """Return a run's model with its tuned LoRA fused, or the model alone where there is no run.

    Raises:
        MissingFileError: if the run has no tuned weights yet.
    """
    if run is None:
        return load_pipeline(config.model)
    weights = run / "final"
    if not (weights / WEIGHTS_NAME).is_file():
        raise MissingFileError(
            f"{weights / WEIGHTS_NAME} does not exist: the run has not ended; go on with `rlcm train --resume {run}`."
        )
    lora = {"path": str(weights), "weight_name": WEIGHTS_NAME}
    model = config.model.model_dump()
    return load_pipeline(ModelSettings.model_validate(model | {"loras": [*model["loras"], lora]}))


def draw_images(
    pipeline: Any, model: ModelSettings, sampler: SamplerSettings, prompts: Sequence[str], seed: int, count: int
) -> torch.Tensor:
    """Return [len(prompts) * count, 3, h, w] images; image j of every prompt has the seed `seed + j`.

    They are those that the plain pipeline draws with `generator=torch.Generator().manual_seed(seed + j)`.
    """
    denoiser = make_denoiser(pipeline, sampler, model)
    conditioning = denoiser.encode(prompts)
    index = torch.arange(len(prompts)).repeat_interleave(count)
    seeds = [seed + j for _ in prompts for j in range(count)]
    parts = []
    for rows in torch.arange(len(seeds)).split(64):
        latents = sample_latents(denoiser, denoiser.table, conditioning.take(index[rows]), [seeds[i] for i in rows.tolist()])
        parts.append(decode_images(denoiser, latents))
    return torch.cat(parts)
