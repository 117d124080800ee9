"""What `rlcm train` and `rlcm rewards prefetch` do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import click

from rlcm.builtin import DEMO
from rlcm.cli.saying import quiet
from rlcm.errors import CheckpointError
from rlcm.pipelines import load_pipeline
from rlcm.processes.distributed import is_main_process
from rlcm.runs.rundir import RunDirectory
from rlcm.training.config import load_config
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.trainer import Trainer


def train(config: str | None, changes: Sequence[str], resume: str | None) -> None:
    """Run `rlcm train`."""
    quiet()
    from rlcm.cli.progress import ConsoleProgress

    with ConsoleProgress() if is_main_process() else nullcontext() as progress:
        if resume is not None:
            trainer = Trainer.resume(latest_run() if resume == "latest" else Path(resume), changes, watcher=progress)
        else:
            settings = load_config(config or DEMO, changes)
            if settings.name:  # before the model is loaded
                RunDirectory(Path(settings.output) / settings.name).require_no_results()
            trainer = Trainer(settings, watcher=progress)
        if progress is not None and trainer.directory is not None and (rows := trainer.directory.metrics()):
            progress.began(rows[0], trainer.round_number)
        folder = trainer.train()
    trainer.world.leave()
    if not trainer.world.is_main:
        return
    before, after = trainer.evaluations[0], trainer.evaluations_to_final[-1]
    if len(trainer.evaluations) == 1:  # stopped before another one
        click.echo(f"reward {before['reward']['mean']:.4g} on {before['images']} fixed images, before the training; none since")
        return
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


def prefetch(config: str) -> None:
    """Run `rlcm rewards prefetch`: fetch, and load once, the model, its LoRAs and all rewards of a configuration."""
    from rlcm.rewards.commands import prefetch as prefetch_rewards

    quiet()
    settings = load_config(config)
    load_pipeline(settings.model)
    click.echo(f"model {settings.model.path}: loads")
    prefetch_rewards([*settings.rewards, *settings.evaluation.held_out])
