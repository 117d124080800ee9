"""What `rlcm train` and `rlcm rewards prefetch` do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import click

from rlcm.builtin import configuration
from rlcm.errors import CheckpointError
from rlcm.paths import command, shown
from rlcm.pipelines import load_pipeline
from rlcm.processes.distributed import is_main_process
from rlcm.report.told import before_alone, before_and_after
from rlcm.report.values import alteration
from rlcm.runs.files import stamp
from rlcm.runs.listing import runs_in
from rlcm.training.beginning import require_free_name
from rlcm.training.build import checked
from rlcm.training.config import load_config
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.locations import located
from rlcm.training.trainer import Trainer
from rlcm.tuning.saying import quiet, say


def check_start(config: str | None, changes: Sequence[str]) -> None:
    """Run `rlcm train --check`: do what a training does before it reads weights."""
    quiet()
    settings = load_config(configuration(config), changes)
    require_free_name(settings)
    for note in checked(located(settings)).notes:
        say(note)
    click.echo("this can start: settings, prompts, rewards and sampler are fine; the weights of the model were not read")


def train(config: str | None, changes: Sequence[str], resume: str | None, *, force: bool = False) -> None:
    """Run `rlcm train`."""
    quiet()
    from rlcm.tuning.progress import ConsoleProgress

    with ConsoleProgress() if is_main_process() else nullcontext() as progress:
        if resume is not None:
            run = latest_run() if resume == "latest" else resume
            trainer = Trainer.resume(run, changes, force=force, watcher=progress)
        else:
            settings = load_config(configuration(config), changes)
            require_free_name(settings)  # before the model is loaded
            trainer = Trainer(settings, watcher=progress)
        if progress is not None and trainer.directory is not None and (rows := trainer.directory.metrics()):
            progress.began(rows[0], trainer.round_number)
        folder = trainer.train()
    trainer.world.leave()
    if not trainer.world.is_main:
        return
    before, after = trainer.evaluations[0], trainer.evaluations_to_final[-1]
    if len(trainer.evaluations) == 1:  # stopped before another one
        click.echo(before_alone(before))
        return
    for line in before_and_after(before, after):
        click.echo(line)
    for entry in trainer.altered:
        click.echo(f"before and after are not of one and the same run: {alteration(entry)}")
    if (folder / "final" / WEIGHTS_NAME).exists():
        click.echo(f"page     {shown(folder / 'report.html')}\nLoRA     {shown(folder / 'final' / WEIGHTS_NAME)}")
        click.echo(f"try it   {command('rlcm', 'sample', folder, '--n', '8')}")


def latest_run(output: Path = Path("runs")) -> Path:
    """Return the folder of the run that was changed last; what is left out of the search is said.

    Raises:
        CheckpointError: if there is none.
    """
    runs, left_out = runs_in(output)
    for name, why in left_out.items():
        say(f"left out: {output / name}: {why}")
    able = [run for run in runs if os.path.isfile(run / "config.yaml")]
    if not able:
        raise CheckpointError(f"--resume latest: there is no run in {output}/; name the run's folder.")
    return max(able, key=lambda run: stamp(run / "metrics.jsonl") or (0, 0))


def prefetch(config: str) -> None:
    """Run `rlcm rewards prefetch`: fetch, and load once, the model, its LoRAs and all rewards of a configuration."""
    from rlcm.rewards.commands import prefetch as prefetch_rewards

    quiet()
    settings = load_config(config)
    load_pipeline(settings.model)
    click.echo(f"model {settings.model.path}: loads")
    prefetch_rewards([*settings.rewards, *settings.evaluation.held_out])
