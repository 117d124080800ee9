"""Prompt sets, read in one place: built-in lists, text files, JSON, JSON lines, or a plain list in the configuration."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcm.builtin.prompts import SETS, prompt_set
from rlcm.builtin.vocabulary import article
from rlcm.errors import ConfigError, MissingFileError
from rlcm.lookalikes import unquoted
from rlcm.paths import existing
from rlcm.runs.files import is_there, why_no_file
from rlcm.text_files import read_text
from rlcm.training.prompt_files import FORMS, OTHERS, READERS, Row, refuse_foreign, row
from rlcm.training.values import SAVE_IT, assignment

# fmt: off
ANIMALS: tuple[str, ...] = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow",
    "goat", "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly",
    "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken",
    "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog",
    "kangaroo",
)
"""The 45 simple animals of the RLCM and DDPO papers' prompt list."""
# fmt: on
BUILT_IN: dict[str, str] = SETS | {
    "animals": "the 45 simple animals of the papers, each with its article: a cat, a dog ... For large models",
    "animals-bare": "the 45 simple animals as the papers write them: cat, dog ...",
}
"""The sets of prompts that have a name, and what is in them."""
LARGEST = 2**28
"""Bytes of a file of prompts."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts and, for each, the metadata that rewards may ask for."""

    prompts: tuple[str, ...]
    """In the order of their file."""
    metadata: tuple[dict[str, Any], ...]
    """What stood beside each of them."""

    def __len__(self) -> int:
        return len(self.prompts)


def load_prompts(source: str | Path | Iterable[str], setting: str = "prompts", own: str | None = None) -> PromptSet:
    """Return the prompts that a setting names; everything that reads prompts asks here.

    Args:
        source: the name of a built-in set, a file, or the prompts themselves, in a list or another collection that has an end.
            The ending of a file, in any case, says what it is: .txt, or none: one prompt a line; .jsonl: one object with a
            `prompt` a line, the rest of it is metadata; .json: a list of texts or of such objects.
        setting: what names them, for errors.
        own: for errors, how to give a prompt of one's own in place of a file; left out, as a list in the setting.

    Raises:
        MissingFileError: if there is no such set or file.
        ConfigError: if the file is of another kind, has no prompts, or a line of it is not what it should be.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _checked([(prompt, {}) for prompt in _finite(source, setting)], setting, "the list")
    source = os.fspath(source)
    if source in BUILT_IN:
        return _checked(_built_in(source), setting, source)
    path = existing(source, setting) or Path(source)
    inner = unquoted(source, plain=True)
    if inner is not None and own is None:
        own = f"Its quotes, {source[0]} and {source[-1]}, are part of it; without them the prompt is {assignment(setting, [inner])}."
    _require_file(path, setting, source, own or f"A prompt of your own goes into a list: {assignment(setting, [source])}.")
    named = f"{setting}={source!r}"
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ConfigError(f"{named}: {path.suffix} is no kind of file that prompts are read from. {FORMS}. {_instead_of(path)}")
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(
                f"{named} has more than {LARGEST >> 20} MiB; all prompts are held in memory, so give fewer of them."
            )
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{named} cannot be read: {error}.") from error
    try:
        refuse_foreign(text)
        rows = read(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{named}, {error}.") from error
    return _checked(rows, setting, source)


def mistakable(source: str | Path | Iterable[str] | None, setting: str = "prompts") -> list[str]:
    """Return which prompts of a list have the name of a set or of a file of prompts, which they do not mean; a sentence each."""
    if not isinstance(source, list | tuple):
        return []
    endings = READERS.keys() - {""}
    what = {text: "a built-in set" for text in source if text in BUILT_IN}
    what |= {text: "a file" for text in source if Path(text).suffix.lower() in endings and _is_file(Path(text))}
    return [
        f"{setting}: {text!r} is taken as a prompt, and is also the name of {named}; for that write {assignment(setting, text)}"
        for text, named in what.items()
    ]


def given_prompts(texts: Sequence[str], setting: str = "--prompts") -> PromptSet:
    """Return prompts given on the command line: texts, files and built-in sets; errors as `load_prompts`.

    What ends like a file is one, so that a wrong path is not taken for a prompt. A file without an ending, and a set, are to stand
    alone, since among other texts they could be texts, too.
    """
    prompts: list[str] = []
    metadata: list[dict[str, Any]] = []
    for text in texts:
        path = existing(text, setting) or Path(text)
        alone = len(texts) == 1 and (text in BUILT_IN or _is_file(path) or (_is_folder(path) and os.sep in text))
        file = alone or path.suffix.lower() in {*READERS, *OTHERS} - {""}
        found = load_prompts(text, setting, "A prompt has no such ending.") if file else PromptSet((text,), ({},))
        prompts += found.prompts
        metadata += found.metadata
    return PromptSet(tuple(prompts), tuple(metadata))


def deal(count: int, prompts: int, seed: int, first_pass: int) -> Tensor:
    """Return which prompt each of a round's `count` groups takes: shuffled whole passes, so that every prompt comes equally often.

    Args:
        prompts: how many prompts there are.
        first_pass: position of the round's first group in the run's endless sequence of groups.
    """
    chosen: list[Tensor] = []
    for position in range(first_pass, first_pass + count):
        turn, place = divmod(position, prompts)
        if not chosen or place == 0:
            order = torch.randperm(prompts, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn))
        chosen.append(order[place])
    return torch.stack(chosen)


def _finite(source: Iterable[str], setting: str) -> list[str]:
    """Return the prompts of a collection.

    Raises:
        ConfigError: if it may have no end or no order, or holds something else than texts.
    """
    if isinstance(source, Set):
        raise ConfigError(f"{setting} is a {type(source).__name__}, which has no order; give a list: sorted(prompts).")
    if not isinstance(source, Iterable) or not isinstance(source, Sized) or isinstance(source, (bytes, Mapping)):
        raise ConfigError(
            f"{setting} is a {type(source).__name__}; give a list of texts. Of an iterator take what you need: "
            "list(itertools.islice(prompts, 1000))."
        )
    prompts = list(source)
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):
            raise ConfigError(f"{setting}, entry {number}: {prompt!r} is not a text; give a list of texts.")
    return prompts


def _require_file(path: Path, setting: str, source: str, own: str) -> None:
    if _is_file(path):
        return
    named = f"{setting}={source!r}"
    folder = bool(source) and _is_folder(path)
    files = _files_in(path if folder else path.parent)
    if folder:
        hint = f"such as {setting}={shlex.quote(files[0])}" if files else "none there has a known ending"
        raise MissingFileError(f"{named} is a folder; give a file in it: {hint}. {FORMS}.")
    if source and is_there(path) and (why := why_no_file(path)):
        raise MissingFileError(f"{named} cannot be read: {why}; {SAVE_IT} such as prompts.txt, and give that. {FORMS}.")
    close = difflib.get_close_matches(source, [*BUILT_IN, *files], n=1, cutoff=0.75)
    hint = f" Did you mean {setting}={shlex.quote(close[0])}?" if close else ""
    raise MissingFileError(f"{named} is neither a file nor a built-in set ({', '.join(BUILT_IN)}).{hint} {own} {FORMS}.")


def _files_in(folder: Path) -> list[str]:
    """Return the files of prompts in a folder, as far as endings say it."""
    try:
        return sorted(
            str(file) for file in folder.iterdir() if file.suffix.lower() in READERS and file.suffix and file.is_file()
        )
    except (OSError, ValueError):
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a prompt in place of a path may be too long for a name
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _built_in(name: str) -> list[Row]:
    if name in SETS:
        return [row(entry, name) for entry in prompt_set(name)]
    return [(article(animal) if name == "animals" else animal, {}) for animal in ANIMALS]


def _instead_of(path: Path) -> str:
    return OTHERS.get(path.suffix.lower(), f"If it is text with one prompt a line, rename it to {path.name}.txt.")


def _checked(rows: Sequence[Row], setting: str, source: str) -> PromptSet:
    for number, (prompt, _) in enumerate(rows, 1):
        if not prompt.strip():
            raise ConfigError(f"{setting}: prompt {number} of {source} is empty; every prompt needs words.")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{setting}: prompt {number} of {source} has half a character in it: {prompt!r}; mend it."
            ) from None
        if "\0" in prompt:
            raise ConfigError(f"{setting}: prompt {number} of {source} has a NUL character in it: {prompt!r}; take it out.")
    if not rows:
        raise ConfigError(f"{setting}: {source} has no prompts; give at least one.")
    return PromptSet(tuple(prompt for prompt, _ in rows), tuple(metadata for _, metadata in rows))
