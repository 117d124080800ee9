"""Parts that the tiny models share: an autoencoder, and the configurations of text encoders."""

from __future__ import annotations

from typing import Any

import diffusers
from transformers import CLIPTextConfig, T5Config

WIDTH = 16


def vae(**config: Any) -> Any:
    """Return an autoencoder that halves the image's size."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        force_upcast=False,
        **config,
    )


def clip(tokenizer: Any) -> CLIPTextConfig:
    """Return the configuration of a text encoder of CLIP."""
    return CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5(tokenizer: Any, width: int = WIDTH) -> T5Config:
    """Return the configuration of an encoder of T5."""
    return T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2)
