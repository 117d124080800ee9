"""The world's tokenizer, and the text encoder that learns with the teacher."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rlcm.builtin.vocabulary import TAGS, every, prompt

MAX_TOKENS = 16
TEXT_WIDTH = 128


def corpus() -> list[str]:
    """Return every prompt of the world, in every wording."""
    asked = [a for tag in TAGS for held_out in (False, True) for a in every(tag, held_out)]
    texts = {prompt(a, unsaid) for a in asked for unsaid in range(4)}
    return sorted({wording(text, kind) for text in texts for kind in range(3)})


def wording(text: str, kind: int) -> str:
    """Return a prompt as it stands (kind 0), without its first article (1), or as a picture of it (2)."""
    first, _, rest = text.partition(" ")
    return (text, rest if first in ("a", "an") else text, f"a picture of {text}")[kind]


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a byte-pair tokenizer in CLIP's format to `folder` and return it; every corpus word is one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    start, end = "<|startoftext|>", "<|endoftext|>"
    trained = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=4000, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    model = json.loads(trained.to_str())["model"]
    # Every byte, inside a word and at its end, so that any text can be written.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(f"{c}</w>" for c in alphabet), *model["vocab"], start, end])
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    folder.mkdir(parents=True, exist_ok=True)
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return the untrained text encoder: 16 tokens to hidden states [B, 16, 128]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
