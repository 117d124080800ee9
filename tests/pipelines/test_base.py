"""What every family shares: prompts in parts, offloading, and the settings' defaults."""

import diffusers
import pytest
import torch
from tiny_pipelines import schedule, stable_diffusion

from rlcm.pipelines import ModelSettings, SamplerSettings, load_pipeline, make_denoiser
from rlcm.pipelines.base import PROMPTS_AT_ONCE
from rlcm.types import Conditioning


def test_many_prompts_are_encoded_in_parts():
    denoiser = make_denoiser(stable_diffusion(diffusers.LCMScheduler(**schedule())), SamplerSettings(guidance=2.0))
    prompts = [f"cat {index}" for index in range(PROMPTS_AT_ONCE + 3)]
    together = denoiser.encode(prompts)
    assert set(together) == {"embeddings", "negative_embeddings"}
    assert len(together) == len(prompts)
    alone = Conditioning.cat([denoiser.encode([prompt]) for prompt in prompts])
    assert all(torch.allclose(together[name], alone[name], atol=1e-6) for name in together)
    with pytest.raises(ValueError, match="no prompts"):
        denoiser.encode([])


def test_long_prompts_do_not_warn_at_every_encoding(caplog):
    denoiser = make_denoiser(stable_diffusion(diffusers.LCMScheduler(**schedule())), SamplerSettings(guidance=1.0))
    denoiser.encode(["cat " * 30])
    assert "truncated" not in caplog.text


def test_offloaded_text_encoders_return(monkeypatch):
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    denoiser = make_denoiser(pipeline, SamplerSettings(guidance=1.0), ModelSettings(offload_text_encoders=True))
    moves = []
    move = pipeline.text_encoder.to
    monkeypatch.setattr(pipeline.text_encoder, "to", lambda device: (moves.append(str(device)), move(device))[1])
    denoiser.encode(["a cat"])
    assert moves == [str(denoiser.device), "cpu"]


def test_the_pipelines_own_guidance_is_the_default():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    denoiser = make_denoiser(pipeline, SamplerSettings())
    assert denoiser.guidance == 7.5
    assert denoiser.classifier_free
    assert denoiser.image_shape == (3, 16, 16)
    assert denoiser.latent_shape == (4, 8, 8)


@pytest.mark.parametrize("path", ["builtin", "builtin-teacher"])
def test_the_built_in_models_have_a_guidance_of_their_own(path):
    settings = ModelSettings(path=path)
    assert make_denoiser(load_pipeline(settings), SamplerSettings(scheduler="ddim", steps=8), settings).guidance == 3.0


def test_first_latents_have_the_samplers_scale():
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**schedule(timestep_spacing="trailing"))
    denoiser = make_denoiser(stable_diffusion(scheduler), SamplerSettings(steps=2, guidance=1.0))
    noise = torch.randn(3, 4, 8, 8)
    assert torch.allclose(denoiser.scale_noise(noise), noise * denoiser.pipeline.scheduler.sigmas.max())
