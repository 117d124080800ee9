"""Prompts that are longer than the model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlcm.pipelines.base import call_default


def truncated_prompts(pipeline: Any, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Return each prompt that the text encoder cuts short, with the whole words of it that are read.

    Of several encoders the longest-reading one counts; models without text have no such prompts.
    """
    reader = _reader(pipeline)
    if reader is None:
        return []
    tokenizer, limit, around = reader

    def fits(text: str) -> bool:
        return len(tokenizer(around(text), truncation=False).input_ids) <= limit

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


def _reader(pipeline: Any) -> tuple[Any, int, Callable[[str], str]] | None:
    """Return the tokenizer that counts, how many tokens the model reads, and what the pipeline writes around a prompt."""
    first, second, third = (getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3"))
    length = call_default(pipeline, "max_sequence_length")
    last = third or second
    if length is not None and last is not None:
        return last, length, _nothing
    if first is None and second is None:
        return None
    tokenizer: Any = first or second
    if length is None:
        return tokenizer, tokenizer.model_max_length, _nothing
    instruction = "\n".join(call_default(pipeline, "complex_human_instruction") or [])
    if instruction:
        return tokenizer, len(tokenizer.encode(instruction)) + length - 2, lambda text: instruction + text
    template = getattr(pipeline, "prompt_template_encode", None)
    if template is not None:  # Qwen-Image, which leaves the beginning of its template out afterwards
        return tokenizer, pipeline.prompt_template_encode_start_idx + length, template.format
    before = getattr(pipeline, "prompt_template_encode_prefix", None)
    if before is not None:  # Krea 2, which does the same and puts the end of its template behind
        beginning, end = pipeline.prompt_template_encode_start_idx, pipeline.prompt_template_encode_num_suffix_tokens
        return tokenizer, beginning + length - end, lambda text: before + text
    if getattr(tokenizer, "chat_template", None):
        return tokenizer, length, lambda text: _as_message(tokenizer, text)
    return tokenizer, length, _nothing


def _nothing(text: str) -> str:
    return text


def _as_message(tokenizer: Any, text: str) -> str:
    """Return a prompt as Z-Image and FLUX.2 put it to their encoder: a message of a user."""
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
