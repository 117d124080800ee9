"""Trains the small CLIP, the differentiable reward for prompt-image alignment."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from rlcm.builtin.scenes import SIZE, Thing
from rlcm.builtin.verdict import Found, verdict
from rlcm.builtin.vocabulary import CLASSES, COLOURS, metadata, prompt
from rlcm.distillation.fit import Fit, device, fast_precision, fit
from rlcm.recipe.data import Pictures
from rlcm.recipe.words import MAX_TOKENS, wording


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return the untrained small CLIP."""
    shared = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 64}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "num_hidden_layers": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": SIZE, "patch_size": 8, "num_hidden_layers": 4}
    return CLIPModel(CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=64))


def train_clip(
    pictures: Pictures, tokenizer: CLIPTokenizer, work: Path, settings: Fit, seed: int, batch_size: int
) -> CLIPModel:
    """Return the small CLIP, trained on what generators may see.

    The loss is symmetric InfoNCE with every prompt that is true of a picture counted as its positive: "a fox and a cat" is true of
    every picture with a fox and a cat in the batch.
    """
    torch.manual_seed(seed)
    clip = new_clip(tokenizer).to(device())

    def loss(rng: torch.Generator, _progress: float) -> dict[str, Tensor]:
        batch = pictures.batch(batch_size, int(torch.randint(2**31, (1,), generator=rng)))
        kinds = torch.randint(3, (batch_size,), generator=rng).tolist()
        texts = [wording(prompt(asked), kind) for asked, kind in zip(batch.asked, kinds, strict=True)]
        tokens = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").to(
            device()
        )
        with fast_precision():
            pixels = batch.images.to(device()) * 2 - 1
            similarity = clip(input_ids=tokens.input_ids, pixel_values=pixels).logits_per_image.float()
        found, asked = [seen(things) for things in batch.things], [metadata(a) for a in batch.asked]
        target = torch.tensor([[verdict(f, a) for a in asked] for f in found], device=similarity.device).float()
        by_image = -(target / target.sum(1, True) * similarity.log_softmax(1)).sum(1).mean()
        by_text = -(target / target.sum(0, True) * similarity.log_softmax(0)).sum(0).mean()
        hit = target.gather(1, similarity.argmax(1, True)).mean()
        return {"loss": (by_image + by_text) / 2, "hit": hit}

    fit("clip", clip, loss, settings, work, seed)
    return clip.eval()


def seen(things: tuple[Thing, ...]) -> list[Found]:
    """Return things as a faultless detector would find them."""
    return [
        Found(
            CLASSES[t.kind],
            None if t.colour is None else COLOURS[t.colour],
            ((t.x - t.side / 2) / SIZE, (t.y - t.side / 2) / SIZE, (t.x + t.side / 2) / SIZE, (t.y + t.side / 2) / SIZE),
        )
        for t in things
    ]
