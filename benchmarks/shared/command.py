"""What the scripts' command lines share."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter


def parser(docstring: str | None, prog: str | None = None) -> ArgumentParser:
    """Return a parser whose `--help` prints the script's docstring as it stands."""
    return ArgumentParser(prog=prog, description=docstring, formatter_class=RawDescriptionHelpFormatter)
