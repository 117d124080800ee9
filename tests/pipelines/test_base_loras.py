"""LoRAs that a model is given before training: fused or beside the trained one, they stay, and only the trained one moves."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from tiny_pipelines import PROMPTS, generators, schedule, stable_diffusion
from tiny_runs import largest_difference, stir, tiny_config

from rlcm.pipelines import LoraSettings, ModelSettings, SamplerSettings, load_pipeline, make_denoiser
from rlcm.policy.adapter import save_lora
from rlcm.policy.policy import ADAPTER, AdapterSettings, Policy
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.trainer import Trainer

SAMPLER = SamplerSettings(steps=3, guidance=1.0)
# to_q has both LoRAs, to_k only the trained one, to_v and the convolution only the given one.
TRAINED = AdapterSettings(rank=4, alpha=8, target_modules=("to_q", "to_k"))
SCALE = 0.7


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model and a LoRA for it, on disk."""
    root = tmp_path_factory.mktemp("base-loras")
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule(clip_sample=False)))
    pipeline.save_pretrained(root / "model")
    torch.manual_seed(4)
    pipeline.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "conv_in"], init_lora_weights=False)
    )
    diffusers.StableDiffusionPipeline.save_lora_weights(
        root / "lora", unet_lora_layers=get_peft_model_state_dict(pipeline.unet)
    )
    return SimpleNamespace(model=root / "model", lora=root / "lora")


def settings(folders, *fuse, scale=SCALE, **changes):
    loras = tuple(LoraSettings(path=str(folders.lora), scale=scale, fuse=each) for each in fuse)
    return ModelSettings(path=str(folders.model), device="cpu", loras=loras, **changes)


def policy_of(model, trained=TRAINED):
    return Policy(make_denoiser(load_pipeline(model), SAMPLER, model), trained)


def states(policy):
    x = torch.randn(3, *policy.denoiser.latent_shape, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([0, 2, 1]), policy.denoiser.encode(PROMPTS).take(torch.tensor([0, 1, 0]))


def outputs(policy):
    with torch.no_grad():
        return policy.denoiser.denoise(*states(policy))


@pytest.mark.parametrize("fuse", [(False,), (False, False), (True, False), (False, True)])
def test_fused_and_live_loras_say_the_same(folders, fuse):
    fused = outputs(policy_of(settings(folders, *[True] * len(fuse))))
    live = policy_of(settings(folders, *fuse))
    assert largest_difference(outputs(live), fused) < 1e-5
    assert largest_difference(outputs(policy_of(settings(folders))), fused) > 1e-2
    adapters = {name for layer in live.layers for name in layer.active_adapters}
    assert adapters == {ADAPTER, *(f"base_{number}" for number, each in enumerate(fuse) if not each)}


def test_the_reference_is_the_model_with_its_lora_and_without_the_trained_one(folders):
    untouched = outputs(policy_of(settings(folders, True)))
    policy = policy_of(settings(folders, False))
    assert torch.equal(outputs(policy), outputs(policy_of(settings(folders, False))))
    stir(policy)
    tuned = outputs(policy)
    assert largest_difference(tuned, untouched) > 1e-2
    with policy.reference():
        assert largest_difference(outputs(policy), untouched) < 1e-5
        with pytest.raises(KeyError), policy.reference():
            raise KeyError
        assert largest_difference(outputs(policy), untouched) < 1e-5
    assert torch.equal(outputs(policy), tuned)


def test_the_gradient_of_a_live_policy_is_that_of_a_fused_one(folders):
    gradients = []
    for fuse in (True, False):
        policy = stir(policy_of(settings(folders, fuse)))
        inputs = states(policy)
        mean = policy.step(*inputs)[1]
        with torch.no_grad(), policy.reference():
            reference = policy.step(*inputs)[1]
        (mean - reference).square().sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters.items()})
    fused, live = gradients
    assert fused.keys() == live.keys()
    for name, gradient in fused.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(live[name], gradient, rtol=1e-3, atol=1e-4)


def test_training_moves_the_trained_lora_alone(folders, tmp_path):
    config = tiny_config(
        tmp_path,
        model=settings(folders, False).model_dump(),
        sampler={"steps": 3, "guidance": 1.0},
        lora=TRAINED.model_dump(),
        algorithm={"kl_coefficient": 0.1},
        rewards=["brightness"],
    )
    trainer = Trainer(config)
    policy = trainer.parts.policy
    before = {name: p.detach().clone() for name, p in policy.denoiser.module.named_parameters()}
    trainer.round()
    moved = {name for name, p in policy.denoiser.module.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert moved
    assert moved <= set(policy.named_parameters)
    assert any(".base_0." in name for name in before)
    assert {name for name, p in policy.denoiser.module.named_parameters() if p.requires_grad} == set(policy.named_parameters)


def test_the_exported_lora_holds_only_what_was_trained(folders, tmp_path):
    policy = stir(policy_of(settings(folders, False)))
    save_lora(policy, tmp_path / WEIGHTS_NAME)
    names = load_file(tmp_path / WEIGHTS_NAME).keys()
    assert names
    assert all(".to_q.lora_" in name or ".to_k.lora_" in name for name in names)

    plain = diffusers.StableDiffusionPipeline.from_pretrained(folders.model, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(folders.lora, adapter_name="given")
    plain.load_lora_weights(tmp_path, adapter_name="tuned")
    plain.set_adapters(["given", "tuned"], [SCALE, 1.0])
    call = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    theirs, ours = (pipeline(PROMPTS, generator=generators(2), **call).images for pipeline in (plain, policy.denoiser.pipeline))
    assert largest_difference(theirs, ours) < 1e-4
    with policy.reference():
        untuned = policy.denoiser.pipeline(PROMPTS, generator=generators(2), **call).images
    assert largest_difference(untuned, ours) > 1e-2


def test_a_live_lora_of_a_half_precision_model(folders):
    policy = policy_of(settings(folders, False, precision="bf16"))
    assert policy.denoiser.dtype is torch.bfloat16
    assert {p.dtype for p in policy.parameters} == {torch.float32}
    exact = outputs(policy_of(settings(folders, True)))
    assert largest_difference(outputs(policy), exact) < 0.1 * float(exact.abs().max())


def test_adapters_that_a_passed_pipeline_brings_stay_on(folders):
    pipeline = load_pipeline(settings(folders))
    pipeline.load_lora_weights(folders.lora, adapter_name="mine")
    policy = Policy(make_denoiser(pipeline, SAMPLER), TRAINED)
    assert largest_difference(outputs(policy), outputs(policy_of(settings(folders, True, scale=1.0)))) < 1e-5
    assert not any(p.requires_grad for name, p in policy.denoiser.module.named_parameters() if ".mine." in name)
