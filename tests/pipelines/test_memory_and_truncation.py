"""The memory estimate's laws, and which prompts are too long."""

import math
from dataclasses import replace

import diffusers
import pytest
import torch
from peft import LoraConfig
from tiny_pipelines import flux, pixart, pixel, sana, schedule, sdxl, stable_diffusion

from rlcm.pipelines import ModelSettings, SamplerSettings, estimate, make_denoiser, truncated_prompts
from rlcm.pipelines.memory import HEAP, REFERENCES


def denoiser(guidance=1.0, device="meta", **model):
    """Return a denoiser without storage: to the estimate all but the CPU are GPUs."""
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    pipeline.unet.to(device)
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
    assert "heap" not in str(training)


def test_text_encoders_are_there_before_the_first_round():
    there, away = (estimate(denoiser(offload_text_encoders=each), 4, 2, training=True) for each in (False, True))
    encoder = sum(p.numel() * 4 for p in denoiser().pipeline.text_encoder.parameters())
    assert away.encoding == there.encoding + encoder
    assert away.weights == there.weights - encoder
    assert 0 < there.encoding < 2**20
    lcm = diffusers.LCMScheduler(**schedule())
    assert estimate(make_denoiser(pixel(), SamplerSettings(steps=2)), 2, 1, training=True).encoding == 0
    # 120 tokens of T5 against 16 of CLIP, whose encoder is as wide.
    assert estimate(make_denoiser(pixart(lcm), SamplerSettings(steps=2)), 2, 1, training=True).encoding > 5 * there.encoding
    large = replace(away, encoding=away.learning * 10)
    assert large.total == away.weights + away.learning * 10


def test_on_a_cpu_the_parts_add_up():
    settings = {"offload_text_encoders": True, "device": "cpu"}
    gpu, cpu = (denoiser(offload_text_encoders=True), denoiser(**settings))
    there, here = (estimate(each, 4, 2, training=True) for each in (gpu, cpu))
    assert (here.sampling, here.decode, here.learning) == (there.sampling, there.decode, there.learning)
    assert here.total == pytest.approx(here.weights + HEAP * here.learning + here.decode, abs=2)
    assert there.total == there.weights + max(there.learning, there.decode)
    # Text encoders that are sent to main memory are in the same memory.
    encoder = sum(p.numel() * 4 for p in cpu.pipeline.text_encoder.parameters())
    assert here.weights == there.weights + encoder
    assert "heap" in str(here)
    sampling = estimate(cpu, 4, 2, training=False)
    assert sampling.total == pytest.approx(sampling.weights + HEAP * sampling.sampling + sampling.decode, abs=2)


def test_sampling_and_recomputing_are_two_things():
    """A call without gradient passes through less than a block that is computed again for its gradient."""
    for name, references in REFERENCES.items():
        for reference in references:
            for wide in (0, 1):
                assert reference.sampling[wide] < reference.checkpointed[wide] < reference.saved[wide], name
            for narrow, full in (reference.sampling, reference.checkpointed, reference.saved):
                assert narrow < full <= 2.01 * narrow, name
    base = denoiser()
    before = estimate(base, 4, 2, training=True)
    base.module.enable_gradient_checkpointing()
    after = estimate(base, 4, 2, training=True)
    assert after.sampling == before.sampling
    assert before.sampling / 4 < after.learning / 2 < before.learning / 2


def test_the_estimate_is_the_count_at_the_counted_size(monkeypatch):
    """Per sample, in 16 and 32 bits, with and without checkpointing."""
    reference = REFERENCES["StableDiffusionPipeline"][0]
    own = denoiser()
    monkeypatch.setattr(type(own), "latent_shape", (4, 64, 64), raising=False)
    del own.latent_shape
    scale = math.sqrt(sum(p.numel() for p in own.module.parameters()) / reference.size) * 2**30
    for wide, dtype in enumerate((torch.bfloat16, torch.float32)):
        own.module.to(dtype)
        own.module.disable_gradient_checkpointing()
        plain = estimate(own, 1, 1, training=True)
        assert plain.sampling == pytest.approx(reference.sampling[wide] * scale, abs=1)
        assert plain.learning == pytest.approx(reference.saved[wide] * scale, abs=1)
        own.module.enable_gradient_checkpointing()
        assert estimate(own, 1, 1, training=True).learning == pytest.approx(reference.checkpointed[wide] * scale, abs=1)


def test_of_two_sizes_the_nearer_one_is_scaled():
    small, large = REFERENCES["SanaSprintPipeline"]
    found = estimate(make_denoiser(sana(), SamplerSettings(steps=2)), 1, 1, training=True)
    assert found.learning / found.sampling == pytest.approx(small.saved[1] / small.sampling[1], rel=1e-3)
    assert small.saved[1] / small.sampling[1] != pytest.approx(large.saved[1] / large.sampling[1], rel=0.1)


def test_the_gradient_of_a_reward_passes_through_decoder_and_calls():
    base = denoiser()
    once = estimate(base, 4, 2, training=True, differentiable=True)
    twice = estimate(base, 4, 2, training=True, differentiable=True, calls=2)
    network = estimate(base, 4, 2, training=True).learning
    assert once.learning == network + once.decode
    assert twice.learning == pytest.approx(2 * network + once.decode, abs=1)


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
    assert saved.learning < base.learning / 3
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
