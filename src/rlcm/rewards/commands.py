"""What `rlcm rewards list | try | serve | prefetch` do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlcm.addresses import bearer_token
from rlcm.errors import ConfigError, MissingFileError, RewardError, UsageError
from rlcm.extras import to_install
from rlcm.rewards.boundary import UserCode, UserCodeError
from rlcm.rewards.build import BUILT_IN, build_reward, build_rewards, located, place_of
from rlcm.rewards.composition import RawScores
from rlcm.rewards.image.pixels import from_uint8, read_picture
from rlcm.rewards.imported import load_callable
from rlcm.rewards.settings import RewardList, RewardSettings, entry_of
from rlcm.rewards.user import first_problems, signature_of
from rlcm.settings import Settings

T = TypeVar("T")

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def list_rewards(name: str | None = None, console: Console | None = None) -> None:
    """Print the built-in rewards, or the description and the arguments of one.

    Raises:
        ConfigError: if there is no reward of that name.
    """
    console = console or Console()
    if name is not None:
        target = load_callable(place_of(name))
        settings = RewardSettings(name=name)
        console.print(f"{settings.label}\n", style="bold", markup=False, highlight=False)
        console.print(inspect.getdoc(target) or "No description.", markup=False, highlight=False)
        arguments = _arguments(target)
        console.print(f"\nargs: {', '.join(arguments) or 'none'}", markup=False, highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("what it is")
    for key, entry in BUILT_IN.items():
        table.add_row(key, entry.summary)
    console.print(table)
    console.print(
        "\nAlso module:function, path/to/file.py:function, and http://host:port of `rlcm rewards serve`. "
        "More on one: rlcm rewards list NAME",
        markup=False,
        highlight=False,
    )


def parse_rewards(texts: Sequence[str]) -> list[RewardSettings]:
    """Return the settings of rewards given on the command line: names, or YAML such as '{name: brightness, weight: 2}'.

    Raises:
        ConfigError, MissingFileError: if one is not a reward's settings, or there is no such reward.
    """
    try:
        return list(map(located, TypeAdapter(RewardList).validate_python(list(map(entry_of, texts)))))
    except ValidationError as error:  # a ValueError, too
        raise ConfigError(f"rewards={list(texts)} cannot be used: {first_problems(error)}.") from error
    except ValueError as error:
        raise ConfigError(
            f"rewards={list(texts)} cannot be used: no YAML ({error}); write it like '{{name: brightness, weight: 2}}'."
        ) from error


def try_rewards(
    rewards: Sequence[str],
    images: Path,
    prompts: Sequence[str],
    console: Console | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Print a table of the scores of pictures.

    Args:
        rewards: names or YAML.
        images: a picture, or a folder of pictures.
        prompts: one text for all, or one a picture in the order of their names.
        metadata: of the prompts, as many.

    Raises:
        MissingFileError: if there are no pictures.
        UsageError: if the prompts do not fit in number.
        RewardError: if a reward fails.
    """
    console = console or Console()
    mix = build_rewards(parse_rewards(rewards))
    files = _pictures(images)
    texts = _for_all(prompts or [""], len(files))
    beside = _for_all(metadata or [{}], len(files))
    pictures = [from_uint8(read_picture(file)[None])[0] for file in files]
    # Pictures of one size go together; a batch is one tensor.
    raw: list[RawScores | None] = [None] * len(files)
    for shape in dict.fromkeys(picture.shape for picture in pictures):
        rows = [index for index, picture in enumerate(pictures) if picture.shape == shape]
        found = mix.score(
            torch.stack([pictures[index] for index in rows]),
            [texts[index] for index in rows],
            [beside[index] for index in rows],
        )
        for place, index in enumerate(rows):
            parts = {label: values[place : place + 1] for label, values in found.parts.items()}
            raw[index] = RawScores(parts, found.valid[place : place + 1], found.failures)
    scores = mix.mix(RawScores.cat([entry for entry in raw if entry is not None]))
    table = Table(box=None, pad_edge=False)
    table.add_column("picture", no_wrap=True)
    table.add_column("prompt", overflow="ellipsis", max_width=40, no_wrap=True)
    columns = {**scores.parts, **({"total": scores.total} if len(scores.parts) > 1 else {})}
    for label in columns:
        table.add_column(Text(label), justify="right", overflow="fold")  # components have names of anybody's
    for index, (file, text) in enumerate(zip(files, texts, strict=True)):
        table.add_row(Text(file.name), Text(text), *(_number(values[index].item()) for values in columns.values()))
    table.add_section()
    table.add_row("mean", "", *(_number(values[scores.valid].mean().item()) for values in columns.values()), style="bold")
    console.print(table)


def serve_rewards(
    rewards: Sequence[str], host: str = "127.0.0.1", port: int = 8000, token_env: str = "RLCM_REWARD_TOKEN", workers: int = 1
) -> None:
    """Serve rewards until told to stop.

    Args:
        rewards: names or YAML; weights do not matter here.
        host: address to listen at.
        port: 0 lets the system choose.
        token_env: the environment variable with the token that clients must show; without it everyone is let in.
        workers: requests scored at the same time.

    Raises:
        UsageError: if the server's packages are not installed, or the port cannot be opened.
    """
    try:
        from rlcm.rewards.served.http import HttpReward
        from rlcm.rewards.served.server import ServerSettings, serve
    except ModuleNotFoundError as error:
        raise UsageError(f"the server needs the package {error.name}; install it with: {to_install('serve')}") from error
    try:
        settings = ServerSettings(host=host, port=port, workers=workers)
    except ValidationError as error:
        raise ConfigError(f"the server cannot be started so: {first_problems(error)}.") from error
    mix = build_rewards(parse_rewards(rewards))
    for part in mix.parts:
        if isinstance(part.reward, HttpReward):
            try:
                part.reward.check_prompts([], [])  # whether the other server is there
            except RewardError as error:
                raise RewardError(f"reward {part.label}: {error}") from error
    serve(mix, settings, bearer_token(token_env), lambda line: print(line, flush=True))


def prefetch(rewards: Sequence[RewardSettings], console: Console | None = None) -> None:
    """Download everything that rewards need, so that they work without network afterwards.

    Raises:
        MissingFileError: if something cannot be downloaded.
        RewardError: if the `load` of a reward of the user's own fails.
    """
    console = console or Console()
    for settings in rewards:
        reward = build_reward(settings)
        sources = getattr(reward, "sources", [])
        if not sources:
            console.print(f"{settings.label}: nothing to download", markup=False, highlight=False)
        for source in sources:
            place = source.fetch()
            console.print(f"{settings.label}: {source.place} is at {place}", markup=False, highlight=False, soft_wrap=True)
        if load := getattr(reward, "load", None):
            _load(settings, load)
            console.print(f"{settings.label}: loads", markup=False, highlight=False)


def _load(settings: RewardSettings, load: Callable[[], Any]) -> None:
    try:
        UserCode(f"reward {settings.label}", settings.timeout_seconds).run(load)
    except UserCodeError as error:
        raise RewardError(f"reward {settings.label}: its load() {error}.") from error.__cause__


def _arguments(target: Any) -> list[str]:
    """Return the arguments that `args` may hold, with their defaults; `more_arguments` names a settings class with further ones."""
    signature = signature_of(target) or inspect.Signature()
    own = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY or not inspect.isclass(target)]
    fixed = {"images", "prompts", "metadata", "on_failure", "address"}
    found = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in own if p.name not in fixed]
    more: type[Settings] | None = getattr(target, "more_arguments", None)
    for name, field in more.model_fields.items() if more else ():
        found.append(name if field.is_required() else f"{name}={field.get_default(call_default_factory=True)!r}")
    return found


def _pictures(place: Path) -> list[Path]:
    files = [place] if place.is_file() else sorted(p for p in place.glob("*") if p.suffix.lower() in PICTURES)
    if odd := [file.name for file in files if not file.is_file()]:
        raise MissingFileError(f"images={str(place)!r} holds what is no file: {', '.join(odd[:3])}; move it away.")
    if not files:
        raise MissingFileError(f"images={str(place)!r} is neither a picture nor a folder with {', '.join(PICTURES)} files.")
    return files


def _for_all(values: Sequence[T], count: int) -> list[T]:
    """Return one value a picture."""
    if len(values) not in (1, count):
        raise UsageError(f"{len(values)} prompts do not fit {count} pictures; give one for all, or one a picture.")
    return list(values) * (count if len(values) == 1 else 1)


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.4g}"
