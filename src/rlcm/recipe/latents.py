"""What the generators learn from: latents of pictures, with captions that are true of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from rlcm.builtin.scenes import caption
from rlcm.builtin.vocabulary import TAGS, Asked, every
from rlcm.distillation.fit import device
from rlcm.recipe.data import Pictures
from rlcm.recipe.words import MAX_TOKENS, wording

WORDINGS = (0.6, 0.2, 0.2)
"""The shares of the wordings of a caption."""


@torch.no_grad()
def encode(pictures: Pictures, vae: AutoencoderKL, count: int, file: Path, batch_size: int = 200) -> tuple[Tensor, list[Asked]]:
    """Return the latents [N, 16, 8, 8] fp16 of `count` pictures and what was asked of each; encoded once, then read from `file`."""
    known = [asked for tag in TAGS for asked in every(tag, False)]
    if not file.exists():
        place = {asked: i for i, asked in enumerate(known)}
        parts, rows = [], []
        for number in range(-(-count // batch_size)):
            batch = pictures.batch(min(batch_size, count - number * batch_size), number)
            latents = [vae.encode(part.to(device()) * 2 - 1).latent_dist.mode() for part in batch.images.split(50)]
            parts.append(torch.cat(latents).half().cpu().contiguous())
            rows += [place[asked] for asked in batch.asked]
        partial = file.with_suffix(".partial")
        save_file({"latents": torch.cat(parts), "asked": torch.tensor(rows)}, partial)
        partial.rename(file)
    stored = load_file(file)
    return stored["latents"], [known[i] for i in stored["asked"].tolist()]


class Captions:
    """Turns words into what a denoiser is conditioned on."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder

    def embed(self, prompts: list[str]) -> Tensor:
        """Return the text encoder's hidden states [B, 16, 128]; differentiable in its weights."""
        tokens = self.tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        hidden: Tensor = self.encoder(tokens.input_ids.to(device()))[0]
        return hidden.float()


def captions(asked: list[Asked], rng: np.random.Generator) -> list[str]:
    """Return a caption of each, some of which leave something out, in varying wording."""
    return [wording(caption(a, rng), int(rng.choice(len(WORDINGS), p=WORDINGS))) for a in asked]


def seeded(rng: torch.Generator) -> np.random.Generator:
    """Return numpy's generator from the next number of torch's."""
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
