"""Trains the world's autoencoder: pictures [B, 3, 64, 64] to latents [B, 16, 8, 8] and back."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from rlcm.distillation.fit import Fit, device, fast_precision, fit
from rlcm.recipe.data import Batch, Pictures

LATENT_CHANNELS = 16
CROP = 32
CROPPED = 0.6
"""The share of the updates that learn from crops around things: a crop costs a quarter, and the ground is easy."""
STANDARD = 500
"""Pictures by which the latents are standardised."""
LATENT_NOISE = 0.15
"""At most so much noise, in standard deviations of the latents, so that the decoder forgives what a generator does."""


def new_autoencoder() -> AutoencoderKL:
    """Return the untrained autoencoder."""
    channels = (16, 32, 64, 64)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train_autoencoder(pictures: Pictures, work: Path, settings: Fit, seed: int, batch_size: int) -> AutoencoderKL:
    """Return the autoencoder; its latents have mean 0 and variance 1 in every channel."""
    torch.manual_seed(seed)
    vae = new_autoencoder().to(device(), memory_format=torch.channels_last)

    def loss(rng: torch.Generator, progress: float) -> dict[str, Tensor]:
        cropped = progress < CROPPED
        batch = pictures.batch(2 * batch_size if cropped else batch_size, _number(rng))
        target = (crops(batch, rng) if cropped else batch.images).to(device()) * 2 - 1
        with fast_precision():
            latent = vae.encode(target.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            strength = LATENT_NOISE * torch.rand(len(latent), 1, 1, 1, generator=rng).to(latent.device)
            noise = torch.randn(latent.shape, generator=rng).to(latent.device)
            output = vae.decode(latent + strength * latent.detach().std() * noise).sample
        output, latent = output.float(), latent.float()
        l1 = (output - target).abs().mean()
        l2 = (output - target).square().mean()
        edges = (output.diff(dim=2) - target.diff(dim=2)).abs().mean() + (output.diff(dim=3) - target.diff(dim=3)).abs().mean()
        penalty = latent.square().mean()
        psnr = -10 * torch.log10((output.clamp(-1, 1) - target).square().mean() / 4)
        return {"loss": l1 + l2 + 0.5 * edges + 1e-3 * penalty, "psnr": psnr.detach(), "latent": penalty.detach()}

    fit("autoencoder", vae, loss, settings, work, seed)
    vae.eval().to(memory_format=torch.contiguous_format)
    return standardised(vae, pictures.batch(STANDARD, -1).images.to(device()))


@torch.no_grad()
def standardised(vae: AutoencoderKL, images: Tensor) -> AutoencoderKL:
    """Change the outermost layers around the latents so that those of `images` have mean 0 and variance 1 in every channel.

    Sampling from the encoder's distribution adds no noise afterwards: training used its mean.
    """
    latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in images.split(50)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    inner, outer = vae.quant_conv, vae.post_quant_conv
    inner.bias[:channels] = (inner.bias[:channels] - mean) / std
    inner.weight[:channels] /= std.view(-1, 1, 1, 1)
    inner.weight[channels:] = 0
    inner.bias[channels:] = -20
    outer.bias += outer.weight.flatten(1) @ mean
    outer.weight *= std.view(1, -1, 1, 1)
    return vae


def crops(batch: Batch, rng: torch.Generator) -> Tensor:
    """Return a crop [B, 3, 32, 32] of every picture, on the grid of the latents, with some thing's centre in it."""
    pieces = []
    for image, things in zip(batch.images, batch.things, strict=True):
        thing = things[int(torch.randint(len(things), (1,), generator=rng))]
        corner = []
        for centre in (thing.y, thing.x):
            low, high = max(0, int(centre - CROP) // 8 + 1), min((image.shape[-1] - CROP) // 8, int(centre) // 8)
            corner.append(8 * int(torch.randint(low, high + 1, (1,), generator=rng)))
        top, left = corner
        pieces.append(image[:, top : top + CROP, left : left + CROP])
    return torch.stack(pieces)


def _number(rng: torch.Generator) -> int:
    return int(torch.randint(2**31, (1,), generator=rng))
