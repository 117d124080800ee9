"""SANA-Sprint, FLUX and PixArt: a rollout through the table gives the pipeline's own images."""

import diffusers
import pytest
import torch
from tiny_pipelines import PROMPTS, distance, flux, generators, pixart, rollout, sana, schedule

from rlcm.errors import ConfigError
from rlcm.pipelines import ModelSettings, SamplerSettings, make_denoiser
from rlcm.types import Conditioning

EXACT = 2e-6


@pytest.mark.parametrize("steps", [2, 3])
def test_sana_sprint(steps):
    pipeline = sana()
    model = ModelSettings(height=64, width=32)
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=steps, guidance=4.5), model)
    call = {"height": 64, "width": 32, "use_resolution_binning": False, "output_type": "pt", "num_inference_steps": steps}
    middle = 1.3 if steps == 2 else None
    expected = pipeline(PROMPTS, intermediate_timesteps=middle, generator=generators(2), **call).images
    conditioning = denoiser.encode(PROMPTS)
    assert distance(rollout(denoiser, conditioning, generators(2)), expected) < EXACT

    assert distance(rollout(denoiser, conditioning.take(torch.tensor([1, 0])), generators(2)), expected) > 1e-4
    other = make_denoiser(pipeline, SamplerSettings(steps=steps, guidance=2.0), model)
    assert distance(rollout(other, conditioning, generators(2)), expected) > 1e-4


@pytest.mark.parametrize(("name", "guidance_embeds"), [("flow_euler_stochastic", True), ("flow_lcm", False)])
def test_flux(name, guidance_embeds):
    pipeline = flux(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), guidance_embeds=guidance_embeds)
    denoiser = make_denoiser(pipeline, SamplerSettings(scheduler=name, steps=3), ModelSettings(height=16, width=32))
    assert denoiser.latent_shape == (4 * 8, 16)
    conditioning = denoiser.encode(PROMPTS)
    # The pipeline gives `step` no generator, so its noise is the global generator's.
    torch.manual_seed(5)
    noise = torch.randn(2, *denoiser.latent_shape)  # the rollout draws it again
    call = {"height": 16, "width": 32, "num_inference_steps": 3, "output_type": "pt"}
    expected = pipeline(PROMPTS, latents=noise, **call).images
    torch.manual_seed(5)
    assert distance(rollout(denoiser, conditioning, None), expected) < EXACT

    torch.manual_seed(5)
    swapped = Conditioning({**conditioning, "pooled": conditioning["pooled"].flip(0)})
    assert distance(rollout(denoiser, swapped, None), expected) > 1e-4

    # A wrong guidance is seen where the network takes one, and refused where it takes none.
    settings, size = SamplerSettings(scheduler=name, steps=3, guidance=9.0), ModelSettings(height=16, width=32)
    if not guidance_embeds:
        with pytest.raises(ConfigError, match=r"guidance=9\.0.*distilled without guidance.*leave it out"):
            make_denoiser(pipeline, settings, size)
        return
    torch.manual_seed(5)
    assert distance(rollout(make_denoiser(pipeline, settings, size), conditioning, None), expected) > 1e-4


def test_flux_noise_of_a_generator_is_packed_by_the_pipeline():
    pipeline = flux(diffusers.FlowMatchEulerDiscreteScheduler())
    denoiser = make_denoiser(pipeline, SamplerSettings(scheduler="flow_euler_stochastic", steps=1))
    latents = torch.randn(2, 4, 6, 10)
    patches = pipeline._pack_latents(latents, 2, 4, 6, 10)
    denoiser.height, denoiser.width = 12, 20
    config = pipeline.vae.config
    assert torch.allclose(denoiser.unscale(patches), latents / config.scaling_factor + config.shift_factor)


@pytest.mark.parametrize(
    ("kind", "sample_size", "guidance"),
    [
        (diffusers.PixArtAlphaPipeline, 8, 0.0),
        (diffusers.PixArtAlphaPipeline, 128, 4.5),
        (diffusers.PixArtSigmaPipeline, 8, 4.5),
    ],
)
def test_pixart(kind, sample_size, guidance):
    pipeline = pixart(diffusers.LCMScheduler(**schedule()), kind, sample_size=sample_size)
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=3, guidance=guidance), ModelSettings(height=16, width=24))
    call = {"height": 16, "width": 24, "use_resolution_binning": False, "output_type": "pt", "num_inference_steps": 3}
    expected = pipeline(PROMPTS, guidance_scale=guidance, generator=generators(2), **call).images
    conditioning = denoiser.encode(PROMPTS)
    assert distance(rollout(denoiser, conditioning, generators(2)), expected) < 1e-5

    shorter = Conditioning({**conditioning, "mask": conditioning["mask"].flip(0)})
    assert distance(rollout(denoiser, shorter, generators(2)), expected) > 1e-4
    other = make_denoiser(pipeline, SamplerSettings(steps=3, guidance=9.0), ModelSettings(height=16, width=24))
    assert distance(rollout(other, other.encode(PROMPTS), generators(2)), expected) > 1e-4
