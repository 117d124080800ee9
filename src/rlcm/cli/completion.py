"""What the shell offers after TAB: settings with their values, from a list made beforehand, since reading them needs torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, get_args

from click import Context, Parameter
from click.shell_completion import CompletionItem

LIST = "settings.txt"
"""Beside this file: a KEY=VALUE a line. `python -m rlcm.cli.completion > src/rlcm/cli/settings.txt` makes it anew."""


def complete_settings(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the settings that begin so, each with its default or every value that it accepts; files where CONFIG may stand."""
    known = resources.files("rlcm.cli").joinpath(LIST).read_text(encoding="utf-8").split()
    found = [CompletionItem(line) for line in known if line.startswith(incomplete)]
    return found or ([CompletionItem(incomplete, type="file")] if param.name == "config" else [])


def listed_settings(settings: Any = None, before: str = "") -> Iterator[str]:
    """Yield KEY=VALUE of all settings of a run: for each value if they are few, else the default, or nothing for what is a list."""
    from rlcm.settings import Settings
    from rlcm.training.config import TrainConfig

    settings = settings or TrainConfig()
    for name, field in type(settings).model_fields.items():
        value, choices = getattr(settings, name), get_args(field.annotation)
        if isinstance(value, Settings):
            yield from listed_settings(value, f"{before}{name}.")
        elif isinstance(value, bool) or (isinstance(value, str) and value in choices):
            yield from (f"{before}{name}={choice}" for choice in (choices or ("true", "false")))
        else:
            text = json.dumps(value).strip('"') if isinstance(value, (int, float, str)) else ""
            yield f"{before}{name}={text}"


if __name__ == "__main__":
    print("\n".join(listed_settings()))
