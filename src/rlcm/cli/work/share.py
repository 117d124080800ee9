"""What `rlcm export` and `rlcm push` do."""

from __future__ import annotations

from pathlib import Path

import click

from rlcm.paths import shown
from rlcm.sharing.formats import ExportPrecision, Format, export_run
from rlcm.sharing.push import prepare, send
from rlcm.training.run_config import run_config
from rlcm.tuning.saying import quiet


def export_result(run: Path, form: Format, output: Path | None, precision: ExportPrecision) -> None:
    """Run `rlcm export`."""
    quiet()
    place = export_run(run, form, output, precision)
    config = run_config(run)
    if form != "merged" and config.model.loras:
        beside = ", ".join(lora.path for lora in config.model.loras)
        click.echo(
            f"note: the run was tuned on its base model with other LoRAs in it ({beside}); this file has its own LoRA alone, and "
            "belongs beside them. `--format merged` has all of them",
            err=True,
        )
    if form == "merged" and (guidance := config.sampler.guidance) is not None:
        click.echo(
            f"note: the run was tuned with guidance {guidance:g}, which no folder of a pipeline keeps; draw from this one with "
            f"`--guidance {guidance:g}`, and tune it with `sampler.guidance={guidance:g}`",
            err=True,
        )
    click.echo(shown(place))


def push_result(
    run: Path, repo: str, dry_run: bool, private: bool, base_model: str | None, licence: str | None, output: Path | None
) -> None:
    """Run `rlcm push`."""
    quiet()
    upload = prepare(run, repo, output, base_model=base_model, licence=licence)
    for note in upload.notes:
        click.echo(f"note: {note}", err=True)
    for name in upload.files:
        click.echo(shown(upload.folder / name))
    click.echo(f"dry run: nothing was sent to {repo}" if dry_run else send(upload, private))
