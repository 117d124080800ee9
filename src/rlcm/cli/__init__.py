"""What a person types: commands, what they do, and what they print."""

from rlcm.cli.commands import main

__all__ = ["main"]
