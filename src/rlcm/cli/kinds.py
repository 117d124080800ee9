"""Kinds of commands: with an example below the help, with KEY=VALUE, and groups that say an error in one paragraph."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rlcm.addresses import without_secrets
from rlcm.cli.completion import meaning_of
from rlcm.cli.dashes import refuse_dashes
from rlcm.cli.streams import PatientStreams
from rlcm.errors import RLCMError, RunDirectoryError
from rlcm.processes.signals import Ending

GRACE_SECONDS = 20.0
"""How long Python's own end may take after a command in which user code ran."""


class WithExample(click.Command):
    """Prints the last paragraph of its docstring, `Example:  rlcm ...`, below the options, on one line."""

    def __init__(self, name: str | None, *, help: str | None = None, **kwargs: Any) -> None:
        text, _, self.example = inspect.cleandoc(help or "").rpartition("\n\nExample:  ")
        super().__init__(name, help=text, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments in; a dash where an option has hyphens is answered with the command as it was meant."""
        refuse_dashes(self, ctx, args)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example unwrapped, so that it can be copied."""
        formatter.write(f"\nExample:  {self.example}\n")


class Group(WithExample, click.Group):
    """Prints the product's own errors as one paragraph and exits with their code.

    Args:
        parts: its commands' names under the titles that its help has them under; left out, all of them under one.
    """

    command_class = WithExample
    group_class = type

    def __init__(self, *args: Any, parts: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts = parts

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what every command does in a whole sentence, the commands under titles."""
        names = self.list_commands(ctx)
        longest = max(map(len, names))
        for title, part in (self.parts or {"Commands": names}).items():
            rows = [(name.ljust(longest), self.commands[name].get_short_help_str(1000)) for name in part]
            with formatter.section(title):
                formatter.write_dl(rows)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Be the process: run the command that was typed, and end also where a user's reward has left threads that never end."""
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            boundary = sys.modules.get("rlcm.rewards.boundary")  # light commands do not load it
            if boundary is None:
                raise
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if boundary.is_left_running():
                _end_at_once(code)
            # Python waits for what a pool of threads or processes still has to do, whoever left it.
            threading.Thread(target=_end_later, args=(code,), name="end", daemon=True).start()
            raise

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that was typed; with --debug an error shows where it came from."""
        answer, code = None, None
        with PatientStreams() as streams, Ending() as ending:
            try:
                answer = super().main(*args, **kwargs)
            except SystemExit as end:
                code = end.code or 0
            except RLCMError as error:
                if "--debug" in sys.argv:
                    raise
                if ending.ended is None:
                    _say_error(str(error))
                code = error.exit_code
            except BaseException as error:  # of whatever kind: a library may have made another error of it
                if ending.ended is not None:
                    code = ending.ended.exit_code
                elif (
                    isinstance(error, PermissionError)
                    and isinstance(error.filename, (str, bytes))
                    and "--debug" not in sys.argv
                ):
                    _say_error(_forbidden(Path(os.fsdecode(error.filename)), error))
                    code = RunDirectoryError.exit_code
                else:
                    raise
            if ending.ended is not None and code:
                click.echo(str(ending.ended), err=True)
                code = ending.ended.exit_code
        if streams.refused is not None:
            _say_error(
                f"standard output could not be written ({streams.refused.strerror}): the work is done, but not all that was "
                "said of it is kept. Free some space, or let it write elsewhere."
            )
            code = code or 1
        if code is not None:
            sys.exit(code)
        return answer


def _forbidden(place: Path, error: OSError) -> str:
    """Return what a person may not look at, and what to do."""
    from rlcm.runs.refusals import no_entry

    return f"{place}: {error.strerror}; {no_entry(place) or 'let its owner allow it'}, or choose another place."


def _end_later(code: int) -> None:
    time.sleep(GRACE_SECONDS)
    with contextlib.suppress(OSError, ValueError):  # nobody may be there to read it
        click.echo(
            f"something that a reward left running was not done within {GRACE_SECONDS:g} s of the end; it was left", err=True
        )
    _end_at_once(code)


def _end_at_once(code: int) -> None:
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError, ValueError):  # it may have ended by now
            child.kill()
    if (imported := sys.modules.get("rlcm.rewards.imported")) is not None:
        imported.clean_up()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _say_error(text: str) -> None:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(without_secrets(text), err=True)


class WithSettings(WithExample):
    """A command that takes KEY=VALUE: says so to those who write a setting like an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments in; an unknown option is answered with the setting that may be meant."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from rlcm.training.config import key_like

            setting = key_like(error.option_name.lstrip("-").replace("-", "_")) or "optimizer.lr"
            raise click.UsageError(
                f"there is no option {error.option_name}; settings are written without dashes as KEY=VALUE, such as {setting}=...",
                ctx,
            ) from None


COMMON = (
    "prompts",
    "rewards",
    "model.path",
    "sampler.steps",
    "rollout.batch_size",
    "rollout.branches",
    "algorithm.kl_coefficient",
    "optimizer.lr",
    "run.rounds",
    "run.time_limit_minutes",
    "name",
    "seed",
)
"""What most people change."""


class WithCommonSettings(WithSettings):
    """Lists the settings that most people change below its options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings with their meanings, cut to a line each, and the example."""
        with formatter.section("KEY=VALUE, most often (all of them: rlcm settings; the last one counts)"):
            rows = []
            for name in COMMON:
                default, meaning = meaning_of(name)
                rows.append(
                    (f"{name}={default}" if len(default) < 12 else f"{name}=...", re.split(r"(?<=[a-z`])[.;:] ", meaning)[0])
                )
            formatter.write_dl(rows)
        super().format_epilog(ctx, formatter)
