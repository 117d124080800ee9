"""Prompts that are longer than the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlcm.pipelines.base import call_default


def truncated_prompts(pipeline: Any, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Return each prompt that the text encoder cuts short, with the whole words of it that are read.

    Of FLUX's two encoders the longer-reading one counts; models without text have no such prompts.
    """
    reader = _reader(pipeline)
    if reader is None:
        return []
    tokenizer, limit, prefix = reader

    def fits(text: str) -> bool:
        return len(tokenizer(prefix + text, truncation=False).input_ids) <= limit

    found = []
    for prompt in prompts:
        if fits(prompt):
            continue
        words = prompt.split()
        low, high = 0, len(words)
        while high - low > 1:  # the first `low` words fit, the first `high` do not
            middle = (low + high) // 2
            low, high = (middle, high) if fits(" ".join(words[:middle])) else (low, middle)
        found.append((prompt, " ".join(words[:low])))
    return found


def _reader(pipeline: Any) -> tuple[Any, int, str] | None:
    """Return the tokenizer that counts, how many tokens the model reads, and what the pipeline puts before a prompt."""
    tokenizer: Any = getattr(pipeline, "tokenizer", None)
    second: Any = getattr(pipeline, "tokenizer_2", None)
    length = call_default(pipeline, "max_sequence_length")
    if length is not None and second is not None:
        return second, length, ""
    if tokenizer is None and second is None:
        return None
    if length is None:
        chosen = tokenizer or second
        return chosen, chosen.model_max_length, ""
    instruction = "\n".join(call_default(pipeline, "complex_human_instruction") or [])
    if not instruction:
        return tokenizer, length, ""
    return tokenizer, len(tokenizer.encode(instruction)) + length - 2, instruction
