"""What the commands do; imported only by the command that runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlcm.builtin import DEMO
from rlcm.errors import CheckpointError, ConfigError, UsageError
from rlcm.pipelines import load_pipeline, make_denoiser
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.policy.rollout import decode_images, sample_latents
from rlcm.processes.distributed import is_main_process
from rlcm.report import write_report
from rlcm.report.steps import step_tables, write_plots
from rlcm.report.words import counted
from rlcm.rewards import RewardSettings
from rlcm.rewards.commands import parse_rewards
from rlcm.runs.rundir import disk_errors, grid
from rlcm.sharing.formats import ExportPrecision, Format, export_run
from rlcm.sharing.push import prepare, send
from rlcm.sharing.tuned import tuned_pipeline
from rlcm.studies.compare import compare, read_methods, write_comparison
from rlcm.studies.compare.page import headline
from rlcm.studies.reproduce import EXPERIMENTS, TASKS, Plan, reproduce
from rlcm.studies.reproduce.plan import SHARES
from rlcm.studies.study import StudySettings, check_steps, default_rewards, prompt_sets, study
from rlcm.training.build import sampled_at_once
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.prompts import load_prompts
from rlcm.training.trainer import Trainer


def quiet() -> None:
    """Silence what libraries say about themselves; the product's own words stay."""
    import diffusers
    import huggingface_hub
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # of each attempt to reach the Hub; the last one's failure is told


def train(config: str | None, changes: Sequence[str], resume: str | None) -> None:
    """Run `rlcm train`."""
    quiet()
    from rlcm.cli.progress import ConsoleProgress

    with ConsoleProgress() if is_main_process() else nullcontext() as progress:
        if resume is not None:
            trainer = Trainer.resume(latest_run() if resume == "latest" else Path(resume), changes, watcher=progress)
        else:
            trainer = Trainer(load_config(config or DEMO, changes), watcher=progress)
        folder = trainer.train()
    trainer.world.leave()
    if not trainer.world.is_main:
        return
    before, after = trainer.evaluations[0], trainer.evaluations_to_final[-1]
    click.echo(f"reward {before['reward']['mean']:.4g} -> {after['reward']['mean']:.4g} on {after['images']} fixed images")
    for question, value in (after["judge"] or {}).items():
        click.echo(f"held-out judge, {question}: {before['judge'][question]['mean']:.1%} -> {value['mean']:.1%}")
    if (folder / "final" / WEIGHTS_NAME).exists():
        click.echo(f"page     {folder / 'report.html'}\nLoRA     {folder / 'final' / WEIGHTS_NAME}")
        click.echo(f"try it   rlcm sample {folder} --n 8")


def prefetch(config: str) -> None:
    """Run `rlcm rewards prefetch`: fetch, and load once, the model, its LoRAs and all rewards of a configuration."""
    from rlcm.rewards.commands import prefetch as prefetch_rewards

    quiet()
    settings = load_config(config)
    load_pipeline(settings.model)
    click.echo(f"model {settings.model.path}: loads")
    prefetch_rewards([*settings.rewards, *settings.evaluation.held_out])


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
    base, run = _config_of(model)
    if not texts:
        texts = list(load_prompts(base.prompts).prompts[: 1 if count > 1 else 16])
    change: dict[str, Any] = {"final_std": 0.0}
    change |= {"steps": steps, "timesteps": None} if steps else {}
    change |= {"guidance": guidance} if guidance is not None else {}
    pipeline = tuned_pipeline(base, run, beside=True)
    images = draw_images(pipeline, base.model, base.sampler.model_copy(update=change), texts, seed, count)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        columns = count if count > 1 else min(8, len(texts))
        grid(images, columns).save(output)
    seeds = f"seeds {seed} to {seed + count - 1}" if count > 1 else f"seed {seed}"
    click.echo(f"{output}: {counted(len(images), 'image')} of {counted(len(texts), 'prompt')}, {seeds}")


def evaluate(
    model: str,
    steps: str,
    rewards: Sequence[str],
    prompts: Sequence[str],
    each: int,
    limit: int,
    seed: int,
    base: bool,
    output: str | None,
) -> None:
    """Run `rlcm eval`."""
    quiet()
    config, run = _config_of(model)
    settings = StudySettings(
        steps=check_steps(steps), each=each, seed=seed, base=base, batch_size=sampled_at_once(config.rollout)
    )
    chosen = parse_rewards(rewards) if rewards else _rewards_of(config)
    groups = prompt_sets(config, run is not None, prompts, limit)
    folder = Path(output) if output else (run or Path()) / "evaluation"
    found = study(config, run, groups, chosen, settings, folder, _say)
    print_study(found)
    with disk_errors(folder):
        paths = [folder / "eval.json", *write_plots(found, folder)]
    if run is not None and output is None:
        paths.append(write_report(run))
    click.echo("\n".join(map(str, paths)))


def _rewards_of(config: TrainConfig) -> list[RewardSettings]:
    """Return the rewards to look at where the user names none.

    Raises:
        ConfigError: if one was an object of a script, which only that script has.
    """
    found = default_rewards(config)
    lost = [r for r in found if r.name.startswith("__main__:") or r.name.endswith("()") or "<" in r.name]
    if lost:
        remedy = " ".join(f"--rewards path/to/file.py:{r.label}" if r in lost else f"--rewards {r.name}" for r in found)
        raise ConfigError(
            f"rewards: {lost[0].name} was given to the training by a script and cannot be found from here; "
            f"name the file that it is in: {remedy}"
        )
    return found


def compare_runs(runs: Sequence[Path], baseline: str | None, reward: str | None, output: Path) -> None:
    """Run `rlcm compare`."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"-o {str(output)!r} is not a page's name; end it in .html.")
    methods, metric, warnings = read_methods(runs, reward)
    names = [method.name for method in methods]
    if baseline is not None and baseline not in names:
        raise ConfigError(f"--baseline {baseline!r} is none of the methods; they are {', '.join(names)}.")
    found = compare(methods, baseline)
    page = write_comparison(methods, metric, warnings, found, output)
    click.echo("".join(headline(found, metric)).replace("\N{NO-BREAK SPACE}", " "))
    for text in warnings:
        click.echo(text)
    click.echo(page)


def export_result(run: Path, form: Format, output: Path | None, precision: ExportPrecision) -> None:
    """Run `rlcm export`."""
    quiet()
    click.echo(export_run(run, form, output, precision))


def push_result(
    run: Path, repo: str, dry_run: bool, private: bool, base_model: str | None, licence: str | None, output: Path | None
) -> None:
    """Run `rlcm push`."""
    quiet()
    upload = prepare(run, repo, output, base_model=base_model, licence=licence)
    for note in upload.notes:
        click.echo(f"note: {note}", err=True)
    for name in upload.files:
        click.echo(upload.folder / name)
    click.echo(f"dry run: nothing was sent to {repo}" if dry_run else send(upload, private))


def run_reproduction(
    only: Sequence[str],
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    budget: float,
    images: int,
    threads: int | None,
    clock: Literal["wall", "cpu"],
    output: Path,
) -> None:
    """Run `rlcm reproduce`."""
    quiet()
    given: dict[str, Any] = {}
    for option, values, known in (("only", only, EXPERIMENTS), ("tasks", tasks, TASKS), ("methods", methods, SHARES)):
        for value in values:
            if value not in known:
                raise ConfigError(f"--{option.rstrip('s')} {value!r} is not one of {', '.join(known)}.")
        given |= {option: tuple(values)} if values else {}
    plan = Plan(output, seeds=seeds, budget=budget, images=images, threads=threads, clock=clock, **given)
    said = [f"--only {v}" for v in only] + [f"--task {v}" for v in tasks] + [f"--method {v}" for v in methods]
    said += [f"--seeds {seeds}", f"--budget {budget:g}", f"--images {images}"] + ([f"--threads {threads}"] if threads else [])
    said += ["--clock cpu"] if clock == "cpu" else []
    command = " ".join(["rlcm reproduce", *said])
    finished = reproduce(plan, command, _say)
    click.echo(output / "results.json" if finished else f"stopped; go on with: {command} -o {output}")
    for page in sorted(output.glob("curves/*/comparison.html")) if finished else ():
        click.echo(page)


def _config_of(model: str) -> tuple[TrainConfig, Path | None]:
    """Return the configuration that MODEL on the command line means, and its folder where it is a run."""
    folder = Path(model)
    if (folder / "config.yaml").is_file():
        return load_config(folder / "config.yaml"), folder
    if folder.is_file() and folder.suffix not in (".safetensors", ".ckpt"):  # weights are no configuration
        return load_config(folder), None
    return TrainConfig(model=ModelSettings(path=model)), None


def _say(text: str) -> None:
    """Tell the user how far it is, beside what the command prints."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def serve_ui(runs: Path, host: str, port: int, password_env: str) -> None:
    """Run `rlcm ui`."""
    quiet()
    try:
        from rlcm.ui.folder import RunsFolder
        from rlcm.ui.page import create_app
        from rlcm.ui.server import address, check_host, listen, serve
    except ModuleNotFoundError as error:
        raise UsageError(f"the page needs the package {error.name}; install it with: pip install 'rlcm[ui]'") from error
    password = os.environ.get(password_env) or None
    check_host(host, password, password_env)
    folder = RunsFolder(runs)
    listener = listen(host, port)
    app = create_app(folder, host, password)
    click.echo(
        f"{folder.path}: {counted(len(folder.names()), 'run')}, at {address(listener)} (Ctrl-C ends it; trainings go on)"
    )
    serve(app, listener)


def print_study(found: Mapping[str, Any]) -> None:
    """Print a study's tables."""
    # As wide as the tables need it: a line that a terminal folds is better than a column without numbers.
    console = Console(width=1000)
    for described in step_tables(found):
        table = Table(title=Text(described["title"]), title_justify="left", box=None, pad_edge=False)
        for head in described["heads"]:
            table.add_column(Text(head.replace(", ", ",\n")), justify="right", no_wrap=True)
        for row in described["rows"]:
            table.add_row(*map(Text, row))
        console.print(table, markup=False)
        console.print()


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
