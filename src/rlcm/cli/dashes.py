"""Options whose hyphens a word processor has made a dash of: `–resume`, `—resume`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

import click

from rlcm.lookalikes import DASHES, named
from rlcm.paths import command

_ANY = DASHES + "-"


def refuse_dashes(parsed: click.Command, ctx: click.Context, args: Sequence[str]) -> None:
    """Refuse options of a command that begin with another dash than a hyphen.

    What follows an option that takes a value, or `--`, is left alone: it may be a text that begins with a dash.

    Raises:
        click.UsageError: if there are any; it says the command with hyphens.
    """
    if ctx.resilient_parsing:  # of the shell's completion
        return
    options = {name: param for param in parsed.get_params(ctx) if isinstance(param, click.Option) for name in param.opts}
    meant: list[str] = []
    odd = ""
    takes_value = False
    for place, arg in enumerate(args):
        if arg == "--" or (isinstance(parsed, click.Group) and not takes_value and not arg.startswith(tuple(_ANY))):
            meant += args[place:]
            break
        option = arg if takes_value else _with_hyphens(arg, options)
        odd += arg if option != arg else ""
        meant.append(option)
        name, equals, _ = option.partition("=")
        known = None if takes_value else options.get(name)
        takes_value = known is not None and not equals and not known.is_flag and not known.count
    if odd:
        dashes = "".join(one for one in odd if one in DASHES)
        raise click.UsageError(
            f"options begin with hyphens (-); here one has {named(dashes)} in their place. Write: "
            f"{command(*ctx.command_path.split(), *meant)}",
            ctx,
        )


def _with_hyphens(arg: str, options: dict[str, click.Option]) -> str:
    """Return an argument as the option that it is with hyphens; as it is where it is none."""
    name, equals, value = arg.partition("=")
    word = name.lstrip(_ANY)
    if word == name or not word or not any(one in DASHES for one in name) or os.path.exists(arg):
        return arg
    word = "".join("-" if one in DASHES else one for one in word)
    if f"--{word}" in options:
        return f"--{word}{equals}{value}"
    if f"-{word}" in options:
        return f"-{word}{equals}{value}"
    close = difflib.get_close_matches(f"--{word}", options, n=1, cutoff=0.75)
    if close:
        return f"{close[0]}{equals}{value}"
    short = f"-{word[0]}" in options and not options[f"-{word[0]}"].is_flag
    return f"-{word}{equals}{value}" if short and word[1:].isalnum() and not word[1:].isalpha() else arg
