"""What the commands share: paths by the one rule, numbers by the settings that they are, and a word before heavy imports."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from rlcm.errors import ConfigError
from rlcm.paths import local

TRAINING = "rlcm.training.config:TrainConfig"
"""Where most numbers of the command line are declared as settings."""


class LocalPath(click.Path):
    """A file or folder: `~` and `~user` are folders of users, and what is relative counts from the working directory."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the Path that is meant, or end the command."""
        try:
            path = local(value, param.human_readable_name if param else "path")
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        if not os.fspath(value):
            self.fail("'' is no path; give one, such as . for the working folder", param, ctx)
        super().convert(path, param, ctx)
        return path


class Setting(click.ParamType):  # type: ignore[type-arg]  # older versions of click know no arguments
    """A value of a setting, with the type and the range that it has everywhere; what it is of is imported only to check one.

    Args:
        kind: the settings, as module:class.
        key: the setting's name in them, dotted.
        name: what the help calls its values.
    """

    def __init__(self, kind: str, key: str, name: str = "integer") -> None:
        self.kind, self.key, self.name = kind, key, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the checked value, or end the command."""
        from rlcm.training.config import parse_settings
        from rlcm.training.values import read_value

        module, _, name = self.kind.partition(":")
        kind = getattr(importlib.import_module(module), name)
        *groups, last = self.key.split(".")
        try:
            given: Any = {last: read_value(kind, self.key, value) if isinstance(value, str) else value}
            for group in reversed(groups):
                given = {group: given}
            found: Any = parse_settings(kind, given)
        except ConfigError as error:
            self.fail(str(error).removeprefix(f"{self.key}="), param, ctx)
        for part in (*groups, last):
            found = getattr(found, part)
        if found is None:  # a setting that may be left out: the option is left out then
            self.fail(f"{value!r}: give a value, or leave the option out.", param, ctx)
        return found


def say_loading() -> None:
    """Say, to a person at a terminal, what the first seconds of a heavy command go into."""
    if sys.stderr.isatty():
        click.secho("loading PyTorch and diffusers ...", dim=True, err=True)
