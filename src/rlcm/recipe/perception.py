"""Trains what looks at pictures: the held-out judge, the autoencoder, and the small CLIP with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from rlcm.builtin.judge import Judge
from rlcm.builtin.vocabulary import ANIMALS, COLOURS, PATTERNS, Scene, caption
from rlcm.distillation.fit import Fit, device, fast_precision, fit
from rlcm.recipe.data import Pictures

MAX_TOKENS = 24
LATENT_CHANNELS = 8


def train_judge(pictures: Pictures, work: Path, settings: Fit, seed: int) -> Judge:
    """Return the judge, trained on clean, blurred, noisy and shifted renders of ALL combinations."""
    torch.manual_seed(seed)
    judge = Judge().to(device())

    def loss(rng: torch.Generator, _progress: float) -> dict[str, torch.Tensor]:
        images, scenes = pictures.batch(128, rng, device())
        images = _worn(images, rng)
        with fast_precision():
            animal, colour = judge(images)
        animal_loss = F.cross_entropy(animal.float(), scenes[:, 0].to(device()))
        colour_loss = F.cross_entropy(colour.float(), scenes[:, 1].to(device()))
        return {"loss": animal_loss + colour_loss, "animal": animal_loss.detach(), "colour": colour_loss.detach()}

    fit("judge", judge, loss, settings, work, seed)
    return judge.eval()


def _worn(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return pictures as an imperfect generator may draw them, so that the judge judges content, not sharpness."""
    kind = torch.rand(len(images), generator=rng).to(images.device)[:, None, None, None]
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    small = F.interpolate(F.interpolate(images, scale_factor=0.5, mode="area"), scale_factor=2.0, mode="bilinear")
    images = torch.where(kind < 0.25, blurred, torch.where(kind < 0.4, small, images))
    noise = torch.randn(images.shape, generator=rng).to(images.device)
    return images + 0.05 * torch.rand(len(images), generator=rng).to(images.device)[:, None, None, None] * noise


def new_autoencoder() -> AutoencoderKL:
    """Return the untrained autoencoder: [B, 3, 64, 64] to latents [B, 8, 8, 8] and back."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train_autoencoder(pictures: Pictures, work: Path, settings: Fit, seed: int) -> AutoencoderKL:
    """Return the autoencoder, its `scaling_factor` set so that scaled latents have unit variance."""
    torch.manual_seed(seed)
    vae = new_autoencoder().to(device())

    def loss(rng: torch.Generator, _progress: float) -> dict[str, torch.Tensor]:
        images, _ = pictures.batch(32, rng, device())
        target = images * 2 - 1
        with fast_precision():
            latent = vae.encode(target).latent_dist.mean
            noise = torch.randn(latent.shape, generator=rng).to(latent.device)
            output = vae.decode(latent + 0.05 * noise).sample
        output, latent = output.float(), latent.float()
        l1 = (output - target).abs().mean()
        l2 = (output - target).square().mean()
        edges = (output.diff(dim=2) - target.diff(dim=2)).abs().mean() + (output.diff(dim=3) - target.diff(dim=3)).abs().mean()
        penalty = latent.square().mean()
        psnr = -10 * torch.log10((output.clamp(-1, 1) - target).square().mean() / 4)
        return {"loss": l1 + l2 + 0.5 * edges + 2e-3 * penalty, "psnr": psnr.detach(), "latent": penalty.detach()}

    fit("autoencoder", vae, loss, settings, work, seed)
    vae.eval()
    with torch.no_grad():
        images, _ = pictures.batch(1000, torch.Generator().manual_seed(seed), device())
        latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in images.split(100)])
        # Sampling from the encoder's distribution must not add noise: training used its mean.
        vae.quant_conv.weight.data[LATENT_CHANNELS:] = 0
        vae.quant_conv.bias.data[LATENT_CHANNELS:] = -20
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


def corpus() -> list[str]:
    """Return every prompt that the built-in model is trained on."""
    scenes = [Scene(a, c, p) for a in range(len(ANIMALS)) for c in range(len(COLOURS)) for p in range(len(PATTERNS))]
    texts = [caption(scene, detail) for scene in scenes for detail in range(3)]
    return sorted({wording(text, kind) for text in texts for kind in range(3)})


def wording(text: str, kind: int) -> str:
    """Return a prompt as it stands (kind 0), without its first article (1), or as a picture of it (2)."""
    return (text, text.split(" ", 1)[1], f"a picture of {text}")[kind]


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


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return the untrained small CLIP; its text tower becomes the generators' text encoder."""
    shared = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 64}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "num_hidden_layers": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": 64, "patch_size": 8, "num_hidden_layers": 4}
    return CLIPModel(CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=64))


def train_clip(pictures: Pictures, tokenizer: CLIPTokenizer, work: Path, settings: Fit, seed: int) -> CLIPModel:
    """Return the small CLIP, trained on the trained combinations alone.

    The loss is symmetric InfoNCE with every caption that is true of a picture counted as its positive: "a fox" is
    true of every fox in the batch.
    """
    torch.manual_seed(seed)
    clip = new_clip(tokenizer).to(device())

    def loss(rng: torch.Generator, _progress: float) -> dict[str, torch.Tensor]:
        images, scenes = pictures.batch(192, rng, device())
        detail = torch.multinomial(torch.tensor([0.15, 0.25, 0.6]), len(scenes), True, generator=rng)
        kinds = torch.randint(3, (len(scenes),), generator=rng)
        texts = [
            wording(caption(Scene(*s), d), k) for s, d, k in zip(scenes.tolist(), detail.tolist(), kinds.tolist(), strict=True)
        ]
        tokens = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").to(
            device()
        )
        with fast_precision():
            similarity = clip(input_ids=tokens.input_ids, pixel_values=images * 2 - 1).logits_per_image.float()
        same = scenes[:, None] == scenes[None]
        true = same[..., 0] & (same[..., 1] | (detail < 1)) & (same[..., 2] | (detail < 2))
        target = true.to(device()).float()
        by_image = -(target / target.sum(1, True) * similarity.log_softmax(1)).sum(1).mean()
        by_text = -(target / target.sum(0, True) * similarity.log_softmax(0)).sum(0).mean()
        hit = target.gather(1, similarity.argmax(1, True)).mean()
        return {"loss": (by_image + by_text) / 2, "hit": hit}

    fit("clip", clip, loss, settings, work, seed)
    return clip.eval()
