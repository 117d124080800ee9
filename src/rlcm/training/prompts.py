"""Prompt sets: built-in lists, text files, JSON lines, or a plain list in the configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcm.builtin.vocabulary import ANIMALS, COLOURS, PATTERNS, Scene, article, caption, is_held_out
from rlcm.errors import ConfigError, MissingFileError
from rlcm.paths import existing

BUILT_IN: dict[str, str] = {
    "animals": "the 45 simple animals of the papers, each with its article: a cat, a dog ...",
    "animals-bare": "the 45 simple animals as the papers write them: cat, dog ...",
    "scenes": "the 405 trained combinations of animal and background colour, each with one pattern",
    "scenes-held-out": "the 45 combinations that the built-in model never saw",
}
"""The sets of prompts that have a name, and what is in them."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts and, for each, the metadata that rewards may ask for."""

    prompts: tuple[str, ...]
    """In the order of their file."""
    metadata: tuple[dict[str, Any], ...]
    """What stood beside each of them."""

    def __len__(self) -> int:
        return len(self.prompts)


def load_prompts(source: str | Sequence[str]) -> PromptSet:
    """Return the prompts that a setting names.

    Args:
        source: the name of a built-in set, a .txt file (one prompt a line), a .jsonl file (objects with a `prompt` key, the
            rest is metadata), or the prompts themselves.

    Raises:
        MissingFileError: if there is no such set or file.
        ConfigError: if the file has no prompts, or a line of it is not what it should be.
    """
    if not isinstance(source, str):
        return _checked([(prompt, {}) for prompt in source], "prompts")
    if source in BUILT_IN:
        return _checked([(prompt, {}) for prompt in _built_in(source)], source)
    path = existing(source, "prompts") or Path(source)
    if not _is_file(path):
        raise MissingFileError(
            f"prompts={source!r} is neither a file nor a built-in set; use a .txt or .jsonl file, a list, "
            f"or one of {', '.join(BUILT_IN)}. A prompt of your own goes into a list: prompts='[{source}]'."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors put a mark before the first prompt
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts={source!r} is not a text file in UTF-8 ({error}); use a .txt or .jsonl file.") from error
    if path.suffix == ".jsonl":
        return _checked([_json_prompt(path, n, line) for n, line in enumerate(lines, 1) if line.strip()], source)
    return _checked([(line.strip(), {}) for line in lines if line.strip()], source)


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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a prompt in place of a path may be too long for a name
        return False


def _built_in(name: str) -> list[str]:
    if name == "animals":
        return [article(animal) for animal in ANIMALS]
    if name == "animals-bare":
        return list(ANIMALS)
    held_out = name == "scenes-held-out"
    pairs = [(a, c) for a in range(len(ANIMALS)) for c in range(len(COLOURS)) if is_held_out(a, c) == held_out]
    return [caption(Scene(a, c, (a + c) % len(PATTERNS))) for a, c in pairs]


def _json_prompt(path: Path, number: int, line: str) -> tuple[str, dict[str, Any]]:
    try:
        entry = json.loads(line)
        prompt = entry.pop("prompt")
        if not isinstance(prompt, str):
            raise TypeError("`prompt` is not a string")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f'prompts={str(path)!r}, line {number}: {line[:80]!r} is not like {{"prompt": "a fox"}} ({error}); mend the line.'
        ) from error
    return prompt.strip(), entry


def _checked(rows: Sequence[tuple[str, dict[str, Any]]], source: str) -> PromptSet:
    if not rows or not all(prompt for prompt, _ in rows):
        raise ConfigError(f"prompts={source!r} has no prompts, or an empty one; give at least one prompt and no empty ones.")
    return PromptSet(tuple(prompt for prompt, _ in rows), tuple(metadata for _, metadata in rows))
