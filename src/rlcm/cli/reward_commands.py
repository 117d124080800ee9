"""`rlcm rewards ...`."""

from __future__ import annotations

from pathlib import Path

import click

from rlcm.cli.arguments import LocalPath
from rlcm.cli.kinds import Group
from rlcm.processes.signals import until_told


@click.group(cls=Group)
def rewards() -> None:
    """List rewards, test them on pictures, and serve them to other machines.

    Example:  rlcm rewards list
    """


@rewards.command("list")
@click.argument("name", required=False)
def rewards_list(name: str | None) -> None:
    """Print the built-in rewards, or the arguments of one.

    Example:  rlcm rewards list jpeg_compressibility
    """
    from rlcm.rewards.commands import list_rewards

    list_rewards(name)


@rewards.command("try")
@click.argument("names", nargs=-1, required=True, metavar="REWARD...")
@click.option("--images", required=True, type=LocalPath(), help="A picture, or a folder of pictures.")
@click.option("--prompts", multiple=True, help="One for all pictures, one for each, a file of prompts or a built-in set.")
def rewards_try(names: tuple[str, ...], images: Path, prompts: tuple[str, ...]) -> None:
    """Print the scores that rewards give to pictures, as a table.

    Example:  rlcm rewards try jpeg_compressibility sharpness --images runs/demo/samples
    """
    from rlcm.rewards.commands import try_rewards
    from rlcm.training.prompts import given_prompts

    found = given_prompts(prompts)
    try_rewards(names, images, found.prompts, metadata=found.metadata)


@rewards.command("serve")
@click.option("--rewards", "names", multiple=True, required=True, metavar="REWARD", help="A reward; may be repeated.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option(
    "--token-env", default="RLCM_REWARD_TOKEN", show_default=True, help="Environment variable with the clients' token."
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 1024), help="Requests scored at the same time.")
def rewards_serve(names: tuple[str, ...], host: str, port: int, token_env: str, workers: int) -> None:
    """Serve rewards over HTTP until told to stop.

    Example:  rlcm rewards serve --rewards jpeg_compressibility --port 8000
    """
    from rlcm.rewards.commands import serve_rewards

    with until_told():
        serve_rewards(names, host, port, token_env, workers)


@rewards.command("prefetch")
@click.argument("config", type=click.Path())
def rewards_prefetch(config: str) -> None:
    """Download everything that a configuration needs, its model included, for machines without network.

    Example:  rlcm rewards prefetch configs/builtin.yaml
    """
    from rlcm.cli.work.train import prefetch

    prefetch(config)
