"""StableDiffusionXLPipeline: a rollout through the table gives the pipeline's own images."""

import diffusers
import pytest
import torch
from tiny_pipelines import PROMPTS, distance, generators, rollout, schedule, sdxl

from rlcm.pipelines import ModelSettings, SamplerSettings, make_denoiser
from rlcm.types import Conditioning

EXACT = 2e-6
CASES = {
    "lcm distilled": ({"time_cond_proj_dim": 8}, SamplerSettings(scheduler="lcm", steps=3, guidance=7.9), {}),
    "lcm lora": ({}, SamplerSettings(scheduler="lcm", steps=4, guidance=1.0), {}),
    "guided, zeros": ({}, SamplerSettings(scheduler="lcm", steps=3, guidance=3.0), {}),
    "guided, words": (
        {},
        SamplerSettings(scheduler="lcm", steps=3, guidance=3.0, negative_prompt="grey"),
        {"negative_prompt": ["grey"] * 2},
    ),
    "turbo": ({}, SamplerSettings(scheduler="euler_ancestral", steps=2, guidance=0.0), {}),
    "ddim": ({}, SamplerSettings(scheduler="ddim", steps=5, guidance=2.0), {"eta": 1.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_rollout_is_the_pipelines_own(name):
    unet, settings, call = CASES[name]
    pipeline = sdxl(diffusers.DDIMScheduler(**schedule(timestep_spacing="trailing")), **unet)
    denoiser = make_denoiser(pipeline, settings, ModelSettings(height=24, width=16))
    call = {"guidance_scale": settings.guidance, "height": 24, "width": 16, **call}
    expected = pipeline(PROMPTS, num_inference_steps=settings.steps, generator=generators(2), output_type="pt", **call).images
    conditioning = denoiser.encode(PROMPTS)
    assert distance(rollout(denoiser, conditioning, generators(2)), expected) < EXACT

    # What would be wrong is seen by the same comparison.
    swapped = Conditioning({**conditioning, "pooled": conditioning["pooled"].flip(0)})
    assert distance(rollout(denoiser, swapped, generators(2)), expected) > 50 * EXACT
    other = make_denoiser(pipeline, settings.model_copy(update={"guidance": 5.0}), ModelSettings(height=24, width=16))
    assert distance(rollout(other, other.encode(PROMPTS), generators(2)), expected) > 50 * EXACT


def test_pooled_embedding_and_size_matter():
    pipeline = sdxl(diffusers.LCMScheduler(**schedule()))
    settings = SamplerSettings(steps=3, guidance=1.0)
    denoiser = make_denoiser(pipeline, settings)
    conditioning = denoiser.encode(PROMPTS)
    images = rollout(denoiser, conditioning, generators(2))
    swapped = Conditioning({**conditioning, "pooled": conditioning["pooled"].flip(0)})
    assert distance(rollout(denoiser, swapped, generators(2)), images) > 1e-4
    denoiser.time_ids = denoiser.time_ids * 2
    assert distance(rollout(denoiser, conditioning, generators(2)), images) > 1e-4


def test_latent_statistics_of_the_vae():
    vae = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
    pipeline = sdxl(diffusers.LCMScheduler(**schedule()), vae=vae)
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=2, guidance=1.0))
    call = {"guidance_scale": 1.0, "num_inference_steps": 2, "generator": generators(2), "output_type": "pt"}
    expected = pipeline(PROMPTS, **call).images
    assert distance(rollout(denoiser, denoiser.encode(PROMPTS), generators(2)), expected) < EXACT
    latents = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    denoiser.decode(latents * 30).sum().backward()
    assert denoiser.decode(latents * 30).max() > 1  # not clamped, so a gradient arrives everywhere
    assert latents.grad.abs().min() > 0
