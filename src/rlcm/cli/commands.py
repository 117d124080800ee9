"""The command line. Commands parse, call and print; everything heavy is imported inside them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from rlcm._version import __version__
from rlcm.builtin import PUBLISHED
from rlcm.cli.arguments import LocalPath, Setting
from rlcm.cli.builtin_commands import THREADS, builtin
from rlcm.cli.completion import all_settings, complete_settings, settings_like
from rlcm.cli.kinds import Group, WithCommonSettings, WithSettings
from rlcm.cli.reward_commands import rewards
from rlcm.paths import require_working_directory, shown

if TYPE_CHECKING:
    from rlcm.sharing.formats import ExportPrecision, Format


TRAINING = "rlcm.training.config:TrainConfig"
DRAWING = "rlcm.pipelines.settings:DrawSettings"
STUDY = "rlcm.studies.evaluation:StudySettings"


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
    _loading()
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
    _loading()
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
    _loading()
    from rlcm.cli.work.sample import sample as run

    run(model, prompts, file, steps, guidance, seed, count, output)


@main.command("eval")
@click.argument("model", metavar="RUN|MODEL|CONFIG", type=click.Path())
@click.option("--steps", metavar="N,N,...", help="Numbers of steps; default 1,2,4,8, or 5,10,25,50 for many-step models.")
@click.option("--rewards", multiple=True, metavar="REWARD", help="In place of the run's own; may be repeated.")
@click.option(
    "--prompts",
    multiple=True,
    metavar="[NAME=]SET",
    help="A .txt, .jsonl or .json file or a built-in set, in addition to the trained ones.",
)
@click.option("--n", "each", type=Setting(STUDY, "each"), default=4, show_default=True, help="Images of every prompt.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=48, show_default=True, help="Largest number of prompts of a set."
)
@click.option("--seed", type=Setting(STUDY, "seed"), default=20_240_404, show_default=True, help="Seed of all noise.")
@click.option("--base/--no-base", default=True, show_default=True, help="Evaluate the base model too.")
@click.option(
    "-o", "--output", type=LocalPath(file_okay=False), help="Folder of the results; default evaluation/ in the run, or here."
)
def evaluate(
    model: str,
    steps: str | None,
    rewards: tuple[str, ...],
    prompts: tuple[str, ...],
    each: int,
    limit: int,
    seed: int,
    base: bool,
    output: Path | None,
) -> None:
    """Evaluate a tuned run against its base model, or a model alone, at several numbers of steps.

    Rewards with 95 % intervals and images per second, on the prompts of the training and, apart from them, on others.
    Writes eval.json, plots and pictures; a run's report.html shows them too.

    Example:  rlcm eval runs/demo --steps 1,4 --rewards jpeg_compressibility --rewards alignment
    """
    _loading()
    from rlcm.cli.work.evaluate import evaluate as run

    run(model, steps, rewards, prompts, each, limit, seed, base, output)


@main.command("compare")
@click.argument("runs", nargs=-1, required=True, type=LocalPath(), metavar="RUN...")
@click.option("--baseline", metavar="METHOD", help="Whose reward is to be reached; default the first run's method.")
@click.option("--reward", metavar="LABEL", help="The reward to compare by; default what all runs were trained on.")
@click.option("--frontier", is_flag=True, help="Reward against divergence from the base model and against diversity.")
@click.option(
    "--strengths",
    metavar="S,S,...",
    help="With --frontier: what each run has learnt at these strengths, 0 to 2, too; 1 is all of it. Draws pictures.",
)
@click.option(
    "-o",
    "--output",
    type=LocalPath(),
    help="The page; its JSON goes beside it. Default comparison.html, or frontier.html, with a picture beside it.",
)
def compare_command(
    runs: tuple[Path, ...], baseline: str | None, reward: str | None, frontier: bool, strengths: str | None, output: Path | None
) -> None:
    """Set runs side by side: reward over time, over reward queries and over network calls.

    Runs that differ in their seed only are one method. The page says how much sooner each reaches the reward of the first. With
    --frontier it says what the reward costs: how much diversity each method has left at which reward.

    Example:  rlcm compare runs/ddpo-0 runs/ddpo-1 runs/rlcm-0 runs/rlcm-1 -o comparison.html
    """
    if not frontier:
        if strengths is not None:
            raise click.UsageError("--strengths belongs to --frontier; add that, or leave it out.")
        from rlcm.cli.work.studies import compare_runs

        compare_runs(runs, baseline, reward, output or Path("comparison.html"))
        return
    if baseline is not None:
        raise click.UsageError("--baseline belongs to the comparison over time; leave it out with --frontier.")
    if strengths is not None:
        _loading()
    from rlcm.cli.work.frontier import draw_frontier

    draw_frontier(runs, reward, strengths, output or Path("frontier.html"))


@main.command("reproduce")
@click.option(
    "--only",
    multiple=True,
    metavar="EXPERIMENT",
    help="curves, inference, generalisation, ablations, learning-rates, last-step; default all.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="TASK",
    help="compressibility, incompressibility, alignment (default all three), aesthetic.",
)
@click.option("--method", "methods", multiple=True, metavar="METHOD", help="ddpo, rlcm-published, rlcm; default all.")
@click.option(
    "--seeds", type=click.IntRange(1, 99), default=3, show_default=True, help="Runs of everything but learning-rates."
)
@click.option(
    "--budget",
    type=Setting(TRAINING, "run.time_limit_minutes", "float"),
    default=60.0,
    show_default=True,
    help="Minutes of training for a run of DDPO; others get a share of it.",
)
@click.option("--images", type=click.IntRange(8, 1_000_000), default=180, show_default=True, help="Images of an evaluation.")
@click.option("--threads", type=THREADS, help="CPU threads; default all cores.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="Count wall-clock time, or computing time on a machine that is busy with other work (then with --threads 1).",
)
@click.option(
    "-o",
    "--output",
    type=LocalPath(file_okay=False),
    default="runs/reproduce",
    show_default=True,
    help="Folder of runs and results.",
)
def reproduce_command(
    only: tuple[str, ...],
    tasks: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: int,
    budget: float,
    images: int,
    threads: int | None,
    clock: Literal["wall", "cpu"],
    output: Path,
) -> None:
    """Repeat the paper's experiments in miniature: RLCM against DDPO, on the built-in models.

    Everything takes an estimated day and a half on two CPU cores; a part of it hours or minutes. What is done is not done
    again: a stopped call goes on where it was. Writes results.json, and a page of curves for every task.

    Example:  rlcm reproduce --only curves --task compressibility --seeds 1 --budget 5
    """
    _loading()
    from rlcm.cli.work.studies import run_reproduction

    run_reproduction(only, tasks, methods, seeds, budget, images, threads, clock, output)


@main.command("export")
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
    _loading()
    from rlcm.cli.work.share import export_result

    export_result(run, form, output, precision)


@main.command("push")
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
    _loading()
    from rlcm.cli.work.share import push_result

    push_result(run, repo, dry_run, private, base_model, licence, output)


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
    _loading()
    from rlcm.cli.work.ui import serve_ui

    serve_ui(runs, host, port, password_env)


@main.command(cls=WithSettings)
@click.argument("config", type=click.Path())
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def distill(config: str, changes: tuple[str, ...]) -> None:
    """Distill a diffusion pipeline into a few-step consistency pipeline.

    Example:  rlcm distill configs/distill/builtin.yaml data=my-pictures
    """
    _loading()
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


main.add_command(rewards)
main.add_command(builtin)


def _loading() -> None:
    """Say, to a person at a terminal, what the first seconds of a heavy command go into."""
    if sys.stderr.isatty():
        click.secho("loading PyTorch and diffusers ...", dim=True, err=True)


def _without_config(config: str | None, changes: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Return CONFIG and KEY=VALUE as meant: a first KEY=VALUE is no CONFIG."""
    if config is not None and "=" in config and not os.path.exists(config):
        return None, (config, *changes)
    return config, changes
