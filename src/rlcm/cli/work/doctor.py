"""What `rlcm doctor` does."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from rlcm.builtin import configuration
from rlcm.doctor import Finding, diagnose
from rlcm.training.config import load_config
from rlcm.tuning.saying import quiet


def run_doctor(config: str | None, changes: Sequence[str], as_json: bool) -> bool:
    """Run `rlcm doctor`: print every finding as it is made and the verdict, or all as JSON; return whether all is well."""
    quiet()
    settings = load_config(configuration(config), changes)
    if as_json:
        diagnosis = diagnose(settings)
        click.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        diagnosis = diagnose(settings, told=_print)
        click.echo(diagnosis.verdict())
    return diagnosis.ok


def _print(finding: Finding) -> None:
    mark = click.style("ok   ", fg="green") if finding.ok else click.style("wrong", fg="red", bold=True)
    click.echo(f"{mark} {finding.name:<18}{finding.value}")
