"""What `rlcm compare --frontier` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from rlcm.errors import ConfigError, RLCMError
from rlcm.paths import shown
from rlcm.studies.frontier import check_strengths, frontier, measure_strengths, print_table, write_frontier
from rlcm.studies.frontier.page import require_frontier_place
from rlcm.tuning.saying import quiet, say


def draw_frontier(runs: Sequence[Path], reward: str | None, strengths: str | None, output: Path) -> None:
    """Run `rlcm compare --frontier`."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"-o {str(output)!r} is not a page's name; end it in .html.")
    require_frontier_place(output)
    wanted = None if strengths is None else check_strengths(strengths)
    found = frontier(runs, reward)  # what is wrong with the runs is told before anything is drawn
    failed = []
    if wanted is not None:
        quiet()
        for run in [Path(path) for track in found.tracks for path in track.runs]:
            try:
                measure_strengths(run, wanted, say)
            except RLCMError as error:
                failed.append(f"The strengths of {run} could not be measured: {error}")
        found = frontier(runs, reward, strengths=True)
    found.warnings += failed
    page = write_frontier(found, output)
    print_table(found)
    for text in found.warnings:
        click.echo(text, err=True)
    for suffix in (".png", ".html"):
        click.echo(shown(page.with_suffix(suffix) if suffix != ".html" else page))
