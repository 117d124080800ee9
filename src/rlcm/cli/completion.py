"""What the shell offers after TAB: settings with their values, from a list made beforehand, since reading them needs torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from click import Context, Parameter
from click.shell_completion import CompletionItem

LIST, MEANINGS = "settings.txt", "settings.yaml"
"""Beside this file: a KEY=VALUE a line, and all settings with their meanings. `python -m rlcm.cli.completion` makes them anew."""


def complete_settings(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the settings that begin so, each with its default or every value that it accepts; files where CONFIG may stand."""
    known = _read(LIST).split()
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


def all_settings() -> str:
    """Return all settings of a run with their defaults and meanings, as YAML."""
    return _read(MEANINGS)


def settings_like(word: str) -> list[tuple[str, str, str]]:
    """Return the settings whose dotted name or meaning has a word in it: name, default as YAML, meaning; those by name first."""
    word = word.casefold()
    found = [one for one in _described() if word in one[0].casefold() or word in one[2].casefold()]
    return sorted(found, key=lambda one: word not in one[0].casefold())


def meaning_of(name: str) -> tuple[str, str]:
    """Return the default of a setting, as YAML, and its meaning.

    Raises:
        KeyError: if there is none of that name.
    """
    return {key: (default, meaning) for key, default, meaning in _described()}[name]


def _described() -> Iterator[tuple[str, str, str]]:
    comment: list[str] = []
    group = ""
    for line in all_settings().splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment.append(text.removeprefix("# "))
            continue
        key, _, value = text.partition(":")
        group = group if line.startswith(" ") else ""
        if value:
            yield group + key, value.strip(), " ".join(comment)
        else:
            group = f"{key}."
        comment = []


def _read(name: str) -> str:
    return resources.files("rlcm.cli").joinpath(name).read_text(encoding="utf-8")


def write_lists(folder: Path) -> None:
    """Write both lists from the settings as they are."""
    from rlcm.training.config import commented_yaml

    (folder / LIST).write_text("\n".join(listed_settings()) + "\n", encoding="utf-8")
    (folder / MEANINGS).write_text(commented_yaml(), encoding="utf-8")


if __name__ == "__main__":
    write_lists(Path(__file__).parent)
