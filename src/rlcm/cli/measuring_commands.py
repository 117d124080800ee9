"""`rlcm eval`, `rlcm compare` and `rlcm reproduce`: how good runs are, alone and against one another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from rlcm.cli.arguments import TRAINING, LocalPath, Setting, say_loading
from rlcm.cli.builtin_commands import THREADS
from rlcm.cli.kinds import WithExample

STUDY = "rlcm.studies.evaluation:StudySettings"


@click.command("eval", cls=WithExample)
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
    say_loading()
    from rlcm.cli.work.evaluate import evaluate as run

    run(model, steps, rewards, prompts, each, limit, seed, base, output)


@click.command("compare", cls=WithExample)
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
        say_loading()
    from rlcm.cli.work.frontier import draw_frontier

    draw_frontier(runs, reward, strengths, output or Path("frontier.html"))


@click.command("reproduce", cls=WithExample)
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
    say_loading()
    from rlcm.cli.work.studies import run_reproduction

    run_reproduction(only, tasks, methods, seeds, budget, images, threads, clock, output)
