"""`rlcm export` and `rlcm push`: a run's LoRA for other tools, and for other people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlcm.cli.arguments import LocalPath, say_loading
from rlcm.cli.kinds import WithExample

if TYPE_CHECKING:
    from rlcm.sharing.formats import ExportPrecision, Format


@click.command("export", cls=WithExample)
@click.argument("run", type=LocalPath(exists=True, file_okay=False))
@click.option(
    "--format",
    "form",
    default="diffusers",
    show_default=True,
    type=click.Choice(["diffusers", "kohya", "comfyui", "merged"]),
    help="A LoRA for diffusers, for kohya's scripts and A1111, or for ComfyUI; or the whole pipeline with the LoRA in it.",
)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True, help="Of the weights."
)
@click.option("-o", "--output", type=LocalPath(), help="A .safetensors file, or a folder; default RUN/export/.")
def export_command(run: Path, form: Format, precision: ExportPrecision, output: Path | None) -> None:
    """Convert the LoRA of a finished run to the format of another tool.

    The adapter has its full strength in each of them, whatever its rank and alpha.

    Example:  rlcm export runs/demo --format kohya -o demo.safetensors
    """
    say_loading()
    from rlcm.cli.work.share import export_result

    export_result(run, form, output, precision)


@click.command("push", cls=WithExample)
@click.argument("run", type=LocalPath(exists=True, file_okay=False))
@click.argument("repo", metavar="USER/NAME")
@click.option("--dry-run", is_flag=True, help="Write the folder that would be uploaded, without using the network.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--base-model", metavar="HUB_ID", help="Name of the base model on the Hub, if the run used a local copy.")
@click.option("--license", "licence", metavar="ID", help="Licence of the adapter, such as apache-2.0; default none.")
@click.option("-o", "--output", type=LocalPath(file_okay=False), help="Folder of the files to upload; default RUN/hub.")
def push_command(
    run: Path, repo: str, dry_run: bool, private: bool, base_model: str | None, licence: str | None, output: Path | None
) -> None:
    """Upload the LoRA of a finished run to the Hugging Face Hub, with a model card, its configuration and its evaluations.

    Needs a token that may write: HF_TOKEN, or `hf auth login`. Look at what would be uploaded with --dry-run first.

    Example:  rlcm push runs/demo me/three-foxes --dry-run
    """
    say_loading()
    from rlcm.cli.work.share import push_result

    push_result(run, repo, dry_run, private, base_model, licence, output)
