"""Prompt sets, read in one place: built-in lists, text files, JSON, JSON lines, or a plain list in the configuration."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
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
from rlcm.text_files import lines_of, read_text
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
LIKE = '{"prompt": "a fox"}'
"""An entry of a file, as errors show it."""
FORMS = (
    "Files of prompts are .txt (one a line; a file without an ending is read so, too), .jsonl (one object a line, "
    f"{LIKE}) or .json (a list of texts or of such objects)"
)
"""What can be read, as errors say it."""

Row = tuple[str, dict[str, Any]]
"""A prompt and what stood beside it."""


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
        return [_row(entry, name) for entry in prompt_set(name)]
    return [(article(animal) if name == "animals" else animal, {}) for animal in ANIMALS]


def _read_lines(text: str) -> list[Row]:
    lines = [line for _, line in _numbered(text)]
    if foreign := _foreign(lines):
        raise ValueError(f"which is read as one prompt a line, {foreign}")
    if lines and (_is_json(text, (list, dict)) or _is_nearly_json(lines)):
        raise ValueError(
            "which is read as one prompt a line, holds JSON; let its name end in .json, or in .jsonl for one object a line"
        )
    return [(line, {}) for line in lines]


def _read_json_lines(text: str) -> list[Row]:
    rows = []
    for number, line in _numbered(text):
        try:
            entry = json.loads(line, object_pairs_hook=_without_doubles)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {line[:80]!r} is not like {LIKE} ({_why(error)}); mend the line") from error
        rows.append(_row(entry, f"line {number}"))
    return rows


def _read_json(text: str) -> list[Row]:
    try:
        found = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        if _is_json(next((line for _, line in _numbered(text)), ""), dict):
            raise ValueError("which has one object a line, is JSON lines; let its name end in .jsonl") from error
        raise ValueError(f"which must hold a list such as [{LIKE}], is no JSON ({_why(error)}); mend it") from error
    if not isinstance(found, list):
        what = f"an object with {', '.join(list(found)[:5])}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ValueError(f"which must hold a list such as [{LIKE}], holds {what}; put the list alone into it")
    return [_row(entry, f"entry {n}") for n, entry in enumerate(found, 1)]


def _numbered(text: str) -> list[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers."""
    # Where files were joined, the mark of the second stands before one of its lines.
    lines = [line.strip().removeprefix("\ufeff").strip() for line in lines_of(text)]
    return [(number, line) for number, line in enumerate(lines, 1) if line]


def _why(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


def _row(entry: Any, place: str) -> Row:
    if isinstance(entry, str):
        return entry.strip(), {}
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f"{place}: {json.dumps(entry)[:80]} is not like {LIKE}: its `prompt` must be a text")
    return entry["prompt"].strip(), {key: value for key, value in entry.items() if key != "prompt"}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _foreign(lines: list[str]) -> str:
    """Return what lines are, and what to do, where programs wrote them for programs; nothing where they may be prompts."""
    if not lines:
        return ""
    for beginning, what in _BEGINNINGS.items():
        if lines[0].lower().startswith(beginning):
            return what
    conflict = [line for line in lines if line.startswith(("<<<<<<< ", ">>>>>>> "))]
    if len(conflict) > 1:
        return f"holds both sides of a conflict of Git ({conflict[0][:40]!r}); keep one of them"
    heads = [cell.strip(" \"'").lower() for cell in re.split("[,;\t]", lines[0])]
    if len(heads) > 1 and "prompt" in heads and len(lines) > 1 and all(re.search("[,;\t]", line) for line in lines):
        return f"is a table with the columns {', '.join(heads)}. {_COLUMN[:-1]}"
    return ""


def _is_nearly_json(lines: list[str]) -> bool:
    """Return whether lines were meant as JSON, or as a list of a program: objects, brackets alone, or texts with commas after them."""
    if any(re.match(r'\{\s*"', line) for line in lines) or re.match(r"""\[\s*(["'{]|$)""", lines[0]):
        return True
    quoted = [re.fullmatch(r"""(["']).*\1,?""", line) for line in lines]
    return all(quoted) and any(line.endswith(",") for line in lines)


def _is_json(text: str, kinds: type | tuple[type, ...]) -> bool:
    try:
        return isinstance(json.loads(text), kinds)
    except (ValueError, RecursionError):
        return False


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


READERS: dict[str, Callable[[str], list[Row]]] = {
    "": _read_lines, ".txt": _read_lines, ".text": _read_lines, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines,
    ".json": _read_json,
}  # fmt: skip
"""How files are read, by their ending in small letters."""
_BEGINNINGS = {
    "version https://git-lfs": "is a pointer of Git LFS, not the file that it stands for; fetch that with `git lfs pull`",
    **dict.fromkeys(("<!doctype", "<html", "<?xml"), "is a web page or XML; save its text alone, one prompt a line"),
    "{\\rtf": "is a document of a word processor (RTF); save it as plain text, one prompt a line",
    "%pdf-": "is a PDF; save its text alone, one prompt a line",
}
"""What files that are no prompts begin with, in small letters, and what to do then."""
_COLUMN = "Save its column of prompts as a .txt file, or its rows as .jsonl."
_WHOLE = "Write its list into the configuration itself, under `prompts:`, or save it as .json."
OTHERS = {
    **dict.fromkeys((".csv", ".tsv", ".xls", ".xlsx", ".ods", ".parquet", ".arrow", ".feather", ".db", ".sqlite"), _COLUMN),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".xml", ".ini"), _WHOLE),
    **dict.fromkeys((".gz", ".zip", ".xz", ".bz2", ".zst", ".tar", ".tgz", ".7z"), "Unpack it first."),
    **dict.fromkeys(
        (".doc", ".docx", ".odt", ".rtf", ".pdf", ".html", ".htm"), "Save its text as a .txt file, one prompt a line."
    ),
}
"""What to do about other kinds of files."""
