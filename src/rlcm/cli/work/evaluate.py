"""What `rlcm eval` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlcm.cli.work.models import config_of
from rlcm.errors import ConfigError
from rlcm.paths import command, shown
from rlcm.report import write_report
from rlcm.report.steps import step_tables, write_plots
from rlcm.rewards import RewardSettings
from rlcm.rewards.commands import parse_rewards
from rlcm.runs.again import is_object
from rlcm.runs.refusals import disk_errors
from rlcm.studies.evaluation import StudySettings, check_steps, default_rewards, own_folder, prompt_sets, study
from rlcm.training.config import TrainConfig
from rlcm.training.fitting import sampled_at_once
from rlcm.tuning.saying import quiet, say


def evaluate(
    model: str,
    steps: str | None,
    rewards: Sequence[str],
    prompts: Sequence[str],
    each: int,
    limit: int,
    seed: int,
    base: bool,
    output: Path | None,
) -> None:
    """Run `rlcm eval`."""
    quiet()
    config, run = config_of(model)
    settings = StudySettings(
        steps=check_steps(steps), each=each, seed=seed, base=base, batch_size=sampled_at_once(config.rollout)
    )
    chosen = parse_rewards(rewards) if rewards else _rewards_of(config)
    groups = prompt_sets(config, run is not None, prompts, limit)
    folder = output or (run or Path()) / "evaluation"
    found = study(config, run, groups, chosen, settings, folder, say)
    print_study(found)
    with disk_errors(folder):
        paths = [folder / "eval.json", *write_plots(found, folder)]
    own_folder(folder).end()
    if run is not None and output is None:
        paths.append(write_report(run))
    click.echo("\n".join(map(shown, paths)))


def _rewards_of(config: TrainConfig) -> list[RewardSettings]:
    """Return the rewards to look at where the user names none.

    Raises:
        ConfigError: if one was an object of a script, which only that script has.
    """
    found = default_rewards(config)
    lost = [r for r in found if is_object(r.name)]
    if lost:
        # A lambda has no name, and a class made without its arguments would be another reward.
        named = (
            f"path/to/file.py:{'NAME' if '<' in r.label or r.name.endswith('()') else r.label}" if r in lost else r.name
            for r in found
        )
        remedy = command(*(word for name in named for word in ("--rewards", name)))
        raise ConfigError(
            f"rewards: {lost[0].name} was given to the training by a script and cannot be found from here; "
            f"name the file that it is in: {remedy}"
        )
    return found


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
