"""What a policy does with a denoiser: adapters, half precision, gradients, full precision again."""

import diffusers
import pytest
import torch
from peft import LoraConfig
from tiny_pipelines import PROMPTS, flux, schedule, sdxl, stable_diffusion

from rlcm.pipelines import SamplerSettings, make_denoiser
from rlcm.types import Denoiser

ATTENTION = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)


def unet_pipeline():
    return stable_diffusion(diffusers.LCMScheduler(**schedule())), SamplerSettings(steps=3, guidance=2.0)


def transformer_pipeline():
    settings = SamplerSettings(scheduler="flow_lcm", steps=3)
    return flux(diffusers.FlowMatchEulerDiscreteScheduler()), settings


def inputs(denoiser):
    x = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(3))
    return x, torch.tensor([0, 2]), denoiser.encode(PROMPTS)


@pytest.mark.parametrize("family", [unet_pipeline, transformer_pipeline])
def test_an_adapter_changes_the_output_and_gets_the_gradient(family):
    denoiser: Denoiser = make_denoiser(*family())
    x, step, conditioning = inputs(denoiser)
    before = denoiser.denoise(x, step, conditioning)
    denoiser.module.add_adapter(ATTENTION)
    after = denoiser.denoise(x, step, conditioning)
    assert (after - before).abs().max() > 1e-4
    after.square().mean().backward()
    trained = [p for p in denoiser.module.parameters() if p.requires_grad]
    assert trained
    assert sum(p.grad.abs().sum() for p in trained) > 0


@pytest.mark.parametrize("family", [unet_pipeline, transformer_pipeline])
def test_rows_of_a_batch_are_independent(family):
    denoiser = make_denoiser(*family())
    x, step, conditioning = inputs(denoiser)
    both = denoiser.denoise(x, step, conditioning)
    for row in range(2):
        index = torch.tensor([row])
        alone = denoiser.denoise(x[index], step[index], conditioning.take(index))
        assert torch.allclose(alone, both[index], atol=1e-5)


@pytest.mark.parametrize("family", [unet_pipeline, transformer_pipeline])
def test_half_precision_stays_inside(family):
    denoiser = make_denoiser(*family())
    x, step, conditioning = inputs(denoiser)
    exact = denoiser.denoise(x, step, conditioning)
    denoiser.module.to(torch.bfloat16)
    denoiser.module.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"]))
    for parameter in denoiser.module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert denoiser.dtype is torch.bfloat16
    half = denoiser.denoise(x, step, denoiser.encode(PROMPTS))
    assert half.dtype is torch.float32
    assert 0 < (half - exact).norm() / exact.norm() < 0.1
    assert torch.equal(half, denoiser.denoise(x, step, conditioning))  # embeddings from before the change of precision
    half.mean().backward()
    assert all(p.grad.dtype is torch.float32 for p in denoiser.module.parameters() if p.grad is not None)


def test_checkpointing_leaves_the_gradient_alone():
    denoiser = make_denoiser(sdxl(diffusers.LCMScheduler(**schedule())), SamplerSettings(steps=2, guidance=1.0))
    x, _, conditioning = inputs(denoiser)
    step = torch.tensor([0, 1])
    denoiser.module.add_adapter(ATTENTION)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            denoiser.module.enable_gradient_checkpointing()
        denoiser.module.zero_grad()
        denoiser.denoise(x, step, conditioning).square().sum().backward()
        gradients.append([p.grad.clone() for p in denoiser.module.parameters() if p.requires_grad])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_decode_is_differentiable_and_unclamped():
    denoiser = make_denoiser(*unet_pipeline())
    latents = (torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(1)) * 30).requires_grad_()
    images = denoiser.decode(latents)
    assert images.shape == (2, *denoiser.image_shape)
    assert images.max() > 1
    images.sum().backward()
    assert latents.grad.abs().min() > 0
