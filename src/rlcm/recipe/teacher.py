"""Trains the diffusion teacher on the autoencoder's latents, and the text encoder with it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, LCMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from rlcm.builtin.vocabulary import Asked
from rlcm.distillation.fit import Fit, device, fast_precision, fit
from rlcm.distillation.loss import NoiseSchedule
from rlcm.recipe.autoencoder import LATENT_CHANNELS
from rlcm.recipe.latents import Captions, captions, seeded
from rlcm.recipe.words import TEXT_WIDTH

_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}


def teacher_scheduler() -> DDIMScheduler:
    """Return the teacher's scheduler."""
    return DDIMScheduler(**_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def student_scheduler() -> LCMScheduler:
    """Return the student's scheduler."""
    return LCMScheduler(**_SCHEDULE, clip_sample=False, set_alpha_to_one=True, original_inference_steps=50)


def new_unet() -> UNet2DConditionModel:
    """Return the untrained denoiser of latents [B, 16, 8, 8]."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(96, 104),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def train_teacher(
    latents: Tensor, asked: list[Asked], words: Captions, work: Path, settings: Fit, seed: int, batch_size: int
) -> UNet2DConditionModel:
    """Return the teacher: v-prediction, one caption in ten dropped for classifier-free guidance; `words.encoder` learns too."""
    torch.manual_seed(seed)
    unet = new_unet().to(device())
    schedule = NoiseSchedule.of(teacher_scheduler())
    both = nn.ModuleDict({"unet": unet, "words": words.encoder.to(device()).train()})

    def loss(rng: torch.Generator, _progress: float) -> dict[str, Tensor]:
        index = torch.randint(len(latents), (batch_size,), generator=rng)
        x_0 = latents[index].to(device()).float()
        draw = seeded(rng)
        texts = captions([asked[i] for i in index.tolist()], draw)
        texts = ["" if dropped else text for text, dropped in zip(texts, draw.random(batch_size) < 0.1, strict=True)]
        # Stratified timesteps: every batch sees all noise levels.
        t = ((torch.arange(batch_size) + torch.rand(batch_size, generator=rng)) * 1000 / batch_size).long().to(device())
        noise = torch.randn(x_0.shape, generator=rng).to(device())
        with fast_precision():
            output = unet(schedule.add_noise(x_0, noise, t), t, words.embed(texts)).sample.float()
        error = (output - schedule.velocity(x_0, noise, t)).square().flatten(1).mean(1)
        half = batch_size // 2
        return {"loss": error.mean(), "light": error[:half].mean().detach(), "heavy": error[half:].mean().detach()}

    fit("teacher", both, loss, settings, work, seed)
    words.encoder.eval()
    return unet.eval()
