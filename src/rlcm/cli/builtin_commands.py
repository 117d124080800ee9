"""`rlcm builtin ...`."""

from __future__ import annotations

from pathlib import Path

import click

from rlcm.cli.arguments import LocalPath
from rlcm.cli.kinds import Group

THREADS = click.IntRange(1, 4096)


@click.group(cls=Group)
def builtin() -> None:
    """Train the built-in model from scratch, and evaluate it.

    Example:  rlcm builtin evaluate --work /tmp/builtin
    """


@builtin.command("train")
@click.option(
    "--work",
    type=LocalPath(file_okay=False),
    default="builtin-work",
    show_default=True,
    help="Folder of renders, checkpoints and logs.",
)
@click.option("--weights", type=LocalPath(file_okay=False), help="Where the weights go; default: into the package.")
@click.option("--font", type=LocalPath(dir_okay=False), help="Path of Noto Color Emoji; default: where Debian puts it.")
@click.option("--stage", "stages", multiple=True, help="Only these stages; default all.")
@click.option("--threads", type=THREADS, help="CPU threads; default all cores.")
def builtin_train(work: Path, weights: Path | None, font: Path | None, stages: tuple[str, ...], threads: int | None) -> None:
    """Train the built-in model from scratch; an interrupted call continues where it was.

    Example:  rlcm builtin train --work /tmp/builtin
    """
    from rlcm.tuning.saying import quiet

    quiet()
    from rlcm.recipe.main import train_all

    train_all(work, weights, font, stages, threads)


@builtin.command("evaluate")
@click.option("--work", type=LocalPath(file_okay=False), default="builtin-work", show_default=True, help="Folder of renders.")
@click.option("--weights", type=LocalPath(file_okay=False), help="Where the weights are; default: in the package.")
@click.option("--font", type=LocalPath(dir_okay=False), help="Path of Noto Color Emoji; default: where Debian puts it.")
def builtin_evaluate(work: Path, weights: Path | None, font: Path | None) -> None:
    """Evaluate the built-in model by its held-out judge and write the figures into its model card.

    Example:  rlcm builtin evaluate --work /tmp/builtin
    """
    from rlcm.tuning.saying import quiet

    quiet()
    from rlcm.recipe.main import evaluate_all

    evaluate_all(work, weights, font)
