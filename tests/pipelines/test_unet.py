"""StableDiffusionPipeline and LatentConsistencyModelPipeline: a rollout through the table gives the pipeline's own images."""

import diffusers
import pytest
import torch
from tiny_pipelines import PROMPTS, distance, generators, rollout, schedule, stable_diffusion

from rlcm.pipelines import SamplerSettings, make_denoiser

EXACT = 2e-6


def test_latent_consistency_model():
    pipeline = stable_diffusion(
        diffusers.LCMScheduler(**schedule(clip_sample=False)), diffusers.LatentConsistencyModelPipeline, time_cond_proj_dim=8
    )
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=4, guidance=7.9))
    conditioning = denoiser.encode(PROMPTS)
    expected = pipeline(PROMPTS, guidance_scale=7.9, num_inference_steps=4, generator=generators(2), output_type="pt").images
    assert distance(rollout(denoiser, conditioning, generators(2)), expected) < EXACT

    swapped = rollout(denoiser, conditioning.take(torch.tensor([1, 0])), generators(2))
    assert distance(swapped, expected) > 1e-3
    other = make_denoiser(pipeline, SamplerSettings(steps=4, guidance=2.0))
    assert distance(rollout(other, conditioning, generators(2)), expected) > 1e-3


SAMPLERS = {
    "lcm": (diffusers.LCMScheduler(**schedule()), SamplerSettings(scheduler="lcm", steps=3, guidance=1.0), {}),
    "lcm guided": (
        diffusers.LCMScheduler(**schedule()),
        SamplerSettings(scheduler="lcm", steps=3, guidance=2.5, negative_prompt="grey"),
        {"guidance_scale": 2.5, "negative_prompt": ["grey"] * 2},
    ),
    "tcd": (diffusers.DDIMScheduler(**schedule()), SamplerSettings(scheduler="tcd", steps=3, guidance=0.0), {"eta": 0.3}),
    "ddim": (
        diffusers.DDIMScheduler(**schedule(set_alpha_to_one=False, steps_offset=1)),
        SamplerSettings(scheduler="ddim", steps=7, guidance=5.0),
        {"guidance_scale": 5.0, "eta": 1.0},
    ),
    "ddim v": (
        diffusers.DDIMScheduler(**schedule(prediction_type="v_prediction")),
        SamplerSettings(steps=5, eta=0.5, guidance=0.0),
        {"eta": 0.5},
    ),
    "turbo": (
        diffusers.EulerAncestralDiscreteScheduler(**schedule(timestep_spacing="trailing")),
        SamplerSettings(steps=3, guidance=0.0),
        {},
    ),
    "ddpm": (diffusers.DDPMScheduler(**schedule()), SamplerSettings(steps=6, guidance=3.0), {"guidance_scale": 3.0}),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_stable_diffusion(name):
    scheduler, settings, call = SAMPLERS[name]
    pipeline = stable_diffusion(scheduler)
    denoiser = make_denoiser(pipeline, settings)
    call = {"guidance_scale": settings.guidance, **call}
    expected = pipeline(PROMPTS, num_inference_steps=settings.steps, generator=generators(2), output_type="pt", **call).images
    conditioning = denoiser.encode(PROMPTS)
    assert distance(rollout(denoiser, conditioning, generators(2)), expected) < EXACT

    # What would be wrong is seen by the same comparison.
    swapped = conditioning.take(torch.tensor([1, 0]))
    assert distance(rollout(denoiser, swapped, generators(2)), expected) > 50 * EXACT
    other = make_denoiser(pipeline, settings.model_copy(update={"guidance": 8.0}))
    assert distance(rollout(other, other.encode(PROMPTS), generators(2)), expected) > 50 * EXACT


def test_guidance_and_negative_prompt_matter():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    images = [
        rollout(denoiser, denoiser.encode(PROMPTS), generators(2))
        for denoiser in (
            make_denoiser(pipeline, SamplerSettings(steps=3, guidance=4.0)),
            make_denoiser(pipeline, SamplerSettings(steps=3, guidance=1.0)),
            make_denoiser(pipeline, SamplerSettings(steps=3, guidance=4.0, negative_prompt="grey")),
        )
    ]
    assert distance(images[0], images[1]) > 1e-3
    assert distance(images[0], images[2]) > 1e-3
