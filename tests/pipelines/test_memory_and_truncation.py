"""The memory estimate's laws, and which prompts are too long."""

import diffusers
import pytest
from peft import LoraConfig
from tiny_pipelines import flux, pixart, pixel, sana, schedule, sdxl, stable_diffusion

from rlcm.pipelines import ModelSettings, SamplerSettings, estimate, make_denoiser, truncated_prompts


def denoiser(guidance=1.0, **model):
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    return make_denoiser(pipeline, SamplerSettings(steps=2, guidance=guidance), ModelSettings(**model))


def test_the_parts_of_an_estimate():
    small = denoiser()
    plain = estimate(small, 4, 2, training=False)
    parts = [small.pipeline.unet, small.pipeline.vae, small.pipeline.text_encoder]
    assert plain.weights == sum(p.numel() * 4 for part in parts for p in part.parameters())
    assert plain.learning == plain.optimiser == 0
    assert plain.total == plain.weights + max(plain.sampling, plain.decode)

    small.module.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    training = estimate(small, 4, 2, training=True)
    assert training.optimiser == 12 * sum(p.numel() for p in small.module.parameters() if p.requires_grad) > 0
    assert training.learning == pytest.approx(estimate(small, 4, 4, training=True).learning / 2, abs=1)
    assert estimate(small, 8, 2, training=True).sampling == pytest.approx(2 * training.sampling, abs=1)
    assert "GiB at the peak (weights" in str(training)


def test_what_makes_an_estimate_larger_or_smaller():
    base = estimate(denoiser(), 4, 2, training=True)
    assert estimate(denoiser(guidance=2.0), 4, 2, training=True).learning == pytest.approx(2 * base.learning, abs=1)
    assert estimate(denoiser(height=32), 4, 2, training=True).learning == pytest.approx(2 * base.learning, abs=1)
    assert estimate(denoiser(height=32), 4, 2, training=True).decode == pytest.approx(2 * base.decode, abs=1)
    less = denoiser(offload_text_encoders=True)
    less.module.enable_gradient_checkpointing()
    less.pipeline.vae.enable_slicing()
    saved = estimate(less, 4, 2, training=True)
    assert saved.weights < base.weights
    assert saved.learning < base.learning / 5
    assert saved.decode == pytest.approx(base.decode / 4, abs=1)
    assert estimate(denoiser(), 4, 2, training=True, differentiable=True).decode > base.decode
    with pytest.raises(ValueError, match="micro_batch=0"):
        estimate(denoiser(), 4, 0, training=True)


def test_every_family_has_an_estimate():
    lcm = diffusers.LCMScheduler(**schedule())
    flow = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    for pipeline in (sdxl(lcm), pixel(), sana(), flux(flow), pixart(lcm)):
        found = estimate(make_denoiser(pipeline, SamplerSettings(steps=2)), 2, 1, training=True)
        assert found.learning > found.sampling / 4 > 0
        assert (found.decode > 0) == hasattr(pipeline, "vae")


def test_prompts_longer_than_clip_reads():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))  # 16 tokens, two of them special
    long = "Red cats " + "on a hill " * 3
    assert truncated_prompts(pipeline, ["a red cat", long, ""]) == [(long, "Red cats on a hill")]
    assert truncated_prompts(pipeline, ["abcdefghijklmnopq"]) == [("abcdefghijklmnopq", "")]


def test_prompts_longer_than_the_other_encoders_read():
    words = "cat " * 200
    for pipeline, letters in (
        (flux(diffusers.FlowMatchEulerDiscreteScheduler()), 512 - 1),
        (sana(), 300 - 2),
        (pixart(diffusers.LCMScheduler(**schedule())), 120 - 1),
    ):
        ((prompt, kept),) = truncated_prompts(pipeline, ["short", words])
        assert prompt == words
        assert kept.replace(" ", "") in words.replace(" ", "")
        assert letters - 6 < len(kept.replace(" ", "")) <= letters
    assert truncated_prompts(pixel(), ["3" * 1000]) == []
