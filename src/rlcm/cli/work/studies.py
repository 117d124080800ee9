"""What `rlcm compare` and `rlcm reproduce` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from rlcm.errors import ConfigError
from rlcm.paths import command, shown
from rlcm.studies.compare import compare, read_methods, write_comparison
from rlcm.studies.compare.page import headline, require_place
from rlcm.studies.reproduce import EXPERIMENTS, TASKS, Plan, reproduce
from rlcm.studies.reproduce.plan import SHARES
from rlcm.tuning.saying import quiet, say


def compare_runs(runs: Sequence[Path], baseline: str | None, reward: str | None, output: Path) -> None:
    """Run `rlcm compare`."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"-o {str(output)!r} is not a page's name; end it in .html.")
    require_place(output)
    methods, metric, warnings = read_methods(runs, reward)
    names = [method.name for method in methods]
    if baseline is not None and baseline not in names:
        raise ConfigError(f"--baseline {baseline!r} is none of the methods; they are {', '.join(names)}.")
    found = compare(methods, baseline)
    page = write_comparison(methods, metric, warnings, found, output)
    click.echo("".join(headline(found, metric, warnings)).replace("\N{NO-BREAK SPACE}", " "))
    for text in warnings:
        click.echo(text, err=True)
    click.echo(shown(page))


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
    named = [("--only", only), ("--task", tasks), ("--method", methods)]
    said = ["rlcm", "reproduce", *(word for option, values in named for value in values for word in (option, value))]
    said += ["--seeds", str(seeds), "--budget", f"{budget:g}", "--images", str(images)]
    said += ["--threads", str(threads)] if threads else []
    said += ["--clock", "cpu"] if clock == "cpu" else []
    finished = reproduce(plan, command(*said), say)
    click.echo(shown(output / "results.json") if finished else f"stopped; go on with: {command(*said, '-o', output)}")
    for page in sorted(output.glob("curves/*/comparison.html")) if finished else ():
        click.echo(shown(page))
