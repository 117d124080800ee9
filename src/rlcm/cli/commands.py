"""The command line. Commands parse, call and print; everything heavy is imported inside them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from rlcm._version import __version__
from rlcm.builtin import PUBLISHED
from rlcm.cli.arguments import TRAINING, LocalPath, Setting, say_loading
from rlcm.cli.builtin_commands import builtin
from rlcm.cli.completion import all_settings, complete_settings, settings_like
from rlcm.cli.kinds import Group, WithCommonSettings, WithSettings
from rlcm.cli.measuring_commands import compare_command, evaluate, reproduce_command
from rlcm.cli.reward_commands import rewards
from rlcm.cli.sharing_commands import export_command, push_command
from rlcm.paths import require_working_directory, shown

DRAWING = "rlcm.pipelines.settings:DrawSettings"


PARTS = {
    "Train": ("train", "distill"),
    "Look": ("sample", "ui", "report"),
    "Measure": ("eval", "compare", "reproduce"),
    "Share": ("export", "push"),
    "Prepare": ("doctor", "rewards", "settings", "builtin"),
}
"""The commands as the help, and the README, group them."""


@click.group(cls=Group, parts=PARTS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rlcm")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Fine-tune few-step text-to-image models with reinforcement learning, on any reward, fast.

    Example:  rlcm train
    """
    require_working_directory()  # before a library ends the process without a word on it


@main.command(cls=WithCommonSettings)
@click.argument("config", required=False, shell_complete=complete_settings)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_settings)
@click.option(
    "--resume",
    metavar="RUN",
    type=click.Path(),
    help="Continue a run: its folder, or `latest`. run.rounds=N makes it longer.",
)
@click.option("--force", is_flag=True, help="With --resume: continue although prompts, rewards, weights or settings changed.")
@click.option("--check", is_flag=True, help="Check whether it can start, without loading the model.")
@click.option("--published", is_flag=True, help="RLCM as published, with the paper's settings, in place of CONFIG.")
def train(config: str | None, changes: tuple[str, ...], resume: str | None, force: bool, check: bool, published: bool) -> None:
    """Tune a model. Without CONFIG it is the built-in model with the default settings; CONFIG `demo` is the demo.

    Example:  rlcm train run.rounds=20 rewards='[jpeg_incompressibility]'
    """
    config, changes = _without_config(config, changes)
    if resume == "":
        raise click.UsageError("--resume '' names no run; give its folder, or `latest`.")
    if published and (config or resume is not None):
        raise click.UsageError("--published is a configuration of its own; leave it out, or CONFIG and --resume.")
    config = str(PUBLISHED) if published else config
    if resume is not None and config:
        raise click.UsageError(
            "--resume goes on with the run's own configuration; leave CONFIG out, or start a new run with it: "
            "rlcm train CONFIG name=NEW"
        )
    if force and resume is None:
        raise click.UsageError("--force belongs to --resume: it goes on with a run although something is not as it was.")
    if check and resume is not None:
        raise click.UsageError("--check looks at a new run; leave it out to go on with one by --resume.")
    say_loading()
    from rlcm.cli.work.train import check_start
    from rlcm.cli.work.train import train as run

    if check:
        check_start(config, changes)
    else:
        run(config, changes, resume, force=force)


@main.command(cls=WithSettings)
@click.argument("config", required=False, shell_complete=complete_settings)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_settings)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(config: str | None, changes: tuple[str, ...], as_json: bool) -> None:
    """Say whether a training run will work on this machine and how long it will take; writes nothing.

    Plays a small round of it. Ends with ok, or with what to change and exit code 1.

    Example:  rlcm doctor configs/builtin-ddpo.yaml
    """
    say_loading()
    from rlcm.cli.work.doctor import run_doctor

    sys.exit(0 if run_doctor(*_without_config(config, changes), as_json) else 1)


@main.command()
@click.argument("model", default="builtin", type=click.Path())
@click.option("--prompt", "prompts", multiple=True, help="A prompt; may be repeated.")
@click.option("--prompts", "file", metavar="FILE", help="A .txt, .jsonl or .json file, or a built-in set.")
@click.option("--steps", type=Setting(TRAINING, "sampler.steps"), help="Sampling steps, 1 to 1000; default 4, or the run's.")
@click.option(
    "--guidance",
    type=Setting(TRAINING, "sampler.guidance", "float"),
    help="Guidance scale, 0 to 100; default the model's, or the run's.",
)
@click.option("--seed", type=Setting(DRAWING, "seed"), default=0, show_default=True, help="Seed of the first image.")
@click.option(
    "-n",
    "--n",
    "count",
    type=Setting(DRAWING, "count"),
    default=1,
    show_default=True,
    help="Images of each prompt, at most 10000.",
)
@click.option(
    "-o",
    "--output",
    type=LocalPath(),
    default="samples.png",
    show_default=True,
    help="One picture of all images, or a folder with one file for each, in the model's own size.",
)
def sample(
    model: str,
    prompts: tuple[str, ...],
    file: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    count: int,
    output: Path,
) -> None:
    """Draw images with MODEL: `builtin`, a run's folder, a configuration, a diffusers folder or a Hub id.

    Example:  rlcm sample builtin --prompt "three foxes" --n 4 -o foxes.png
    """
    say_loading()
    from rlcm.cli.work.sample import sample as run

    run(model, prompts, file, steps, guidance, seed, count, output)


@main.command()
@click.argument("run", type=LocalPath(exists=True, file_okay=False))
def report(run: Path) -> None:
    """Write the report.html of a run again.

    Example:  rlcm report runs/demo
    """
    from rlcm.report import write_report

    click.echo(shown(write_report(run)))


@main.command()
@click.argument("runs", default="runs", metavar="[RUNS_DIR]", type=LocalPath())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; any other needs a password.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option(
    "--password-env", default="RLCM_UI_PASSWORD", show_default=True, help="Environment variable with the visitors' password."
)
def ui(runs: Path, host: str, port: int, password_env: str) -> None:
    """Open a page in the browser: watch runs, draw with them, and start, stop and resume them.

    Serves this machine alone and nothing outside RUNS_DIR, until told to stop.

    Example:  rlcm ui runs
    """
    say_loading()
    from rlcm.cli.work.ui import serve_ui

    serve_ui(runs, host, port, password_env)


@main.command(cls=WithSettings)
@click.argument("config", type=click.Path())
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def distill(config: str, changes: tuple[str, ...]) -> None:
    """Distill a diffusion pipeline into a few-step consistency pipeline.

    Example:  rlcm distill configs/distill/builtin.yaml data=my-pictures
    """
    say_loading()
    from rlcm.tuning.saying import quiet

    quiet()
    from rlcm.distillation.distill import run_distillation

    click.echo(run_distillation(config, changes))


@main.command()
@click.argument("word", required=False)
def settings(word: str | None) -> None:
    """Print every setting of a training run with its default and its meaning, as a commented YAML file; or those about a WORD.

    Example:  rlcm settings leash
    """
    if word is None:
        click.echo(all_settings(), nl=False)
        return
    found = settings_like(word)
    if not found:
        raise click.UsageError(f"no setting has {word!r} in its name or its meaning; `rlcm settings` prints all of them.")
    for name, default, meaning in found:
        click.secho(f"{name}={default}", bold=True)
        click.echo(click.wrap_text(meaning, initial_indent="    ", subsequent_indent="    "))


for command in (evaluate, compare_command, reproduce_command, export_command, push_command, rewards, builtin):
    main.add_command(command)


def _without_config(config: str | None, changes: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Return CONFIG and KEY=VALUE as meant: a first KEY=VALUE is no CONFIG."""
    if config is not None and "=" in config and not os.path.exists(config):
        return None, (config, *changes)
    return config, changes
