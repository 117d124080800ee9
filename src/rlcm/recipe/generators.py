"""Trains what draws: the diffusion teacher on the autoencoder's latents, and the consistency student distilled from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from rlcm.builtin.vocabulary import Scene, caption
from rlcm.distillation.fit import Fit, device, fit
from rlcm.distillation.loss import Distiller, NoiseSchedule, student_of
from rlcm.recipe.data import Pictures
from rlcm.recipe.perception import LATENT_CHANNELS, MAX_TOKENS, wording
from rlcm.types import Conditioning

GUIDANCE = (1.0, 8.0)
"""The range of guidance scales that the student is distilled for."""
_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}


def teacher_scheduler() -> DDIMScheduler:
    """Return the teacher's scheduler."""
    return DDIMScheduler(**_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def student_scheduler() -> LCMScheduler:
    """Return the student's scheduler."""
    return LCMScheduler(**_SCHEDULE, clip_sample=False, set_alpha_to_one=True, original_inference_steps=50)


def new_unet() -> UNet2DConditionModel:
    """Return the untrained denoiser of latents [B, 8, 8, 8]."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(64, 104),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )


@torch.no_grad()
def latents_of(pictures: Pictures, vae: AutoencoderKL) -> torch.Tensor:
    """Return the scaled latents [2, N, 8, 8, 8] of all pictures and of their mirror images."""
    images = pictures.images
    parts = []
    for mirrored in (False, True):
        whole = images.flip(3) if mirrored else images
        batches = (part.to(device()).float() / 127.5 - 1 for part in whole.split(250))
        parts.append(torch.cat([vae.encode(batch).latent_dist.mode().cpu() for batch in batches]))
    return torch.stack(parts) * vae.config.scaling_factor


class LatentBatches:
    """Draws seeded batches of latents and their prompts' embeddings."""

    def __init__(self, latents: torch.Tensor, scenes: torch.Tensor, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
        self.latents, self.scenes, self.tokenizer, self.encoder = latents, scenes, tokenizer, encoder

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Return the text encoder's hidden states [B, 24, 128]."""
        tokens = self.tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        return self.encoder(tokens.input_ids.to(device()))[0].float()

    def draw(self, size: int, rng: torch.Generator) -> tuple[torch.Tensor, list[str]]:
        """Return latents [size, 8, 8, 8] and prompts of varying detail and wording that are true of them."""
        index = torch.randint(len(self.scenes), (size,), generator=rng)
        mirrored = torch.randint(2, (size,), generator=rng)
        detail = torch.multinomial(torch.tensor([0.2, 0.2, 0.6]), size, True, generator=rng)
        kinds = torch.multinomial(torch.tensor([0.6, 0.2, 0.2]), size, True, generator=rng)
        rows = zip(self.scenes[index].tolist(), detail.tolist(), kinds.tolist(), strict=True)
        return self.latents[mirrored, index].to(device()), [wording(caption(Scene(*s), d), k) for s, d, k in rows]


def train_teacher(batches: LatentBatches, work: Path, settings: Fit, seed: int, batch_size: int = 64) -> UNet2DConditionModel:
    """Return the diffusion teacher: v-prediction, one prompt in ten dropped for classifier-free guidance."""
    torch.manual_seed(seed)
    unet = new_unet().to(device())
    schedule = NoiseSchedule.of(teacher_scheduler())

    def loss(rng: torch.Generator, _progress: float) -> dict[str, torch.Tensor]:
        x_0, prompts = batches.draw(batch_size, rng)
        dropped = (torch.rand(batch_size, generator=rng) < 0.1).tolist()
        hidden = batches.embed(["" if drop else prompt for drop, prompt in zip(dropped, prompts, strict=True)])
        # Stratified timesteps: every batch sees all noise levels.
        t = ((torch.arange(batch_size) + torch.rand(batch_size, generator=rng)) * 1000 / batch_size).long().to(device())
        noise = torch.randn(x_0.shape, generator=rng).to(device())
        output = unet(schedule.add_noise(x_0, noise, t), t, hidden).sample
        return {"loss": (output - schedule.velocity(x_0, noise, t)).square().mean()}

    fit("teacher", unet, loss, settings, work, seed)
    return unet.eval()


def train_student(teacher: Any, batches: LatentBatches, work: Path, settings: Fit, seed: int, batch_size: int = 64) -> Any:
    """Return the consistency student; solver jumps shrink from five grid cells to one over the first half."""
    torch.manual_seed(seed)
    student = student_of(teacher)
    distiller = Distiller(teacher, student, NoiseSchedule.of(student_scheduler()))
    empty = batches.embed([""]).expand(batch_size, -1, -1)

    def loss(rng: torch.Generator, progress: float) -> dict[str, torch.Tensor]:
        distiller.follow()
        x_0, prompts = batches.draw(batch_size, rng)
        condition = Conditioning(encoder_hidden_states=batches.embed(prompts))
        unconditional = Conditioning(encoder_hidden_states=empty)
        jump = max(1, round(5 - 8 * progress))
        return {"loss": distiller.loss(x_0, condition, unconditional, rng, guidance=GUIDANCE, jump=jump)}

    fit("student", student, loss, settings, work, seed, companion=distiller.target)
    return student.eval()
