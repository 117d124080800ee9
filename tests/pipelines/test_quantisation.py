"""Frozen weights in 8 and 4 bits: near the whole ones, smaller, never trained; the LoRA beside them learns as it would."""

import importlib.util
from types import SimpleNamespace

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_pipelines import PROMPTS, flux, generators, pixart, pixel, sana, schedule, sdxl, stable_diffusion
from tiny_runs import largest_difference, stir, tiny_config
from torch import nn

import rlcm.pipelines.quantisation as quantisation
from rlcm.distillation.distill import DistillConfig, distill
from rlcm.doctor.machine import machine
from rlcm.errors import ConfigError
from rlcm.learning.mismatch import computes_alike
from rlcm.pipelines import FAMILIES, LoraSettings, ModelSettings, SamplerSettings, estimate, load_pipeline, make_denoiser
from rlcm.pipelines.quantisation import (
    check_quantisation,
    is_quantised,
    kept_for_backward,
    linear_layers,
    quantise,
    stored_bytes,
)
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.processes.sharding import shard
from rlcm.runs import digests
from rlcm.sharing import export_run, tuned_pipeline
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.trainer import Trainer

CPU = torch.device("cpu")
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}"))
    for kind, package in quantisation.PACKAGES.items()
]
INT8 = KINDS[0].marks[0]
SAMPLER = SamplerSettings(steps=3, guidance=1.0)
# What 8 and 4 bits may change in a network's output, relative to it.
NEAR = {"int8": 0.02, "nf4": 0.3}


def lcm():
    return diffusers.LCMScheduler(**schedule(clip_sample=False))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model and a LoRA for it, on disk."""
    root = tmp_path_factory.mktemp("quantisation")
    pipeline = stable_diffusion(lcm())
    pipeline.save_pretrained(root / "model")
    torch.manual_seed(4)
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "conv_in"], init_lora_weights=False))
    diffusers.StableDiffusionPipeline.save_lora_weights(
        root / "lora", unet_lora_layers=get_peft_model_state_dict(pipeline.unet)
    )
    return SimpleNamespace(model=root / "model", lora=root / "lora")


def settings(path, kind="none", **changes):
    return ModelSettings(path=str(path), device="cpu", quantisation=kind, **changes)


def policy_of(model):
    return Policy(make_denoiser(load_pipeline(model), SAMPLER, model), AdapterSettings(rank=4, alpha=8))


def states(denoiser):
    x = torch.randn(3, *denoiser.latent_shape, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([0, 2, 1]), denoiser.encode(PROMPTS).take(torch.tensor([0, 1, 0]))


@torch.no_grad()
def output(denoiser):
    return denoiser.denoise(*states(denoiser))


def quantised(module):
    return {name: p for name, p in module.named_parameters() if is_quantised(p)}


# What is quantised


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_layers_of_the_network_and_nothing_else(folders, kind):
    whole, small = (load_pipeline(settings(folders.model, each)) for each in ("none", kind))
    linear = {f"{name}.weight" for name, layer in whole.unet.named_modules() if isinstance(layer, nn.Linear)}
    assert quantised(small.unet).keys() == linear
    for name, parameter in small.unet.named_parameters():
        assert name in linear or torch.equal(parameter, whole.unet.get_parameter(name))
    for part in ("vae", "text_encoder"):
        assert not quantised(getattr(small, part))
    assert not any(p.requires_grad for p in small.unet.parameters())
    assert not small.unet.training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: stable_diffusion(lcm()),
        lambda: sdxl(lcm()),
        lambda: pixel(),
        sana,
        lambda: flux(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)),
        lambda: pixart(lcm()),
    ],
    ids=["sd", "sdxl", "pixel", "sana", "flux", "pixart"],
)
def test_every_family_says_nearly_the_same_and_the_lora_learns(make, kind):
    pipeline = make()
    sampler = SamplerSettings(steps=2)
    size = {"height": 16, "width": 16} if type(pipeline).__name__ == "FluxPipeline" else {}
    model = ModelSettings(device="cpu", quantisation=kind, **size)
    whole = output2(make_denoiser(pipeline, sampler, model))
    network = getattr(pipeline, FAMILIES[type(pipeline).__name__].network)
    assert linear_layers(network)
    quantise(network, kind)
    network.to(CPU)
    denoiser = make_denoiser(pipeline, sampler, model)
    assert denoiser.dtype == torch.float32
    change = (output2(denoiser) - whole).norm() / whole.norm()
    assert 0 < change < NEAR[kind]
    policy = stir(Policy(denoiser, AdapterSettings(rank=2, alpha=4)))
    kept = {name: p.detach().clone() for name, p in quantised(network).items()}
    x = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(3))
    policy.step(x, torch.tensor([0, 1]), conditions(denoiser))[1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters)
    assert sum(bool(p.grad.any()) for p in policy.parameters) > len(policy.parameters) // 2
    assert kept
    assert all(p.grad is None and not p.requires_grad for p in quantised(network).values())


def conditions(denoiser):
    return denoiser.encode(["7", "3"] if type(denoiser.pipeline).__name__ == "ConsistencyModelPipeline" else PROMPTS[:2])


@torch.no_grad()
def output2(denoiser):
    x = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(3))
    return denoiser.denoise(x, torch.tensor([0, 1]), conditions(denoiser))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_any_shape_gives_the_same_bits_with_and_without_gradient(folders, kind):
    policy = stir(policy_of(settings(folders.model, kind)))
    assert computes_alike(policy.denoiser)
    x = torch.randn(12, *policy.denoiser.latent_shape, generator=torch.Generator().manual_seed(2))
    conditioning = policy.denoiser.encode(PROMPTS).take(torch.arange(12) % len(PROMPTS))
    with torch.no_grad():
        together = policy.step(x, torch.arange(12) % 3, conditioning)[1]
    for start in range(0, 12, 4):
        rows = torch.arange(start, start + 4)
        apart = policy.step(x[rows], rows % 3, conditioning.take(rows))[1]
        assert apart.requires_grad
        assert torch.equal(apart.detach(), together[rows])


# LoRAs that the model came with


@INT8
def test_a_fused_lora_is_in_the_weights_before_they_are_rounded(folders):
    lora = (LoraSettings(path=str(folders.lora)),)
    whole = output(policy_of(settings(folders.model, loras=lora)).denoiser)
    assert largest_difference(output(policy_of(settings(folders.model)).denoiser), whole) > 0.1
    found = output(policy_of(settings(folders.model, "int8", loras=lora)).denoiser)
    assert (found - whole).norm() < NEAR["int8"] * whole.norm()


@INT8
def test_a_lora_beside_the_weights_stays_whole(folders):
    lora = (LoraSettings(path=str(folders.lora), fuse=False),)
    policy = policy_of(settings(folders.model, "int8", loras=lora))
    assert quantised(policy.denoiser.module)
    assert not any(".lora_" in name for name in quantised(policy.denoiser.module))
    whole = output(policy_of(settings(folders.model, loras=lora)).denoiser)
    assert (output(policy.denoiser) - whole).norm() < NEAR["int8"] * whole.norm()
    stir(policy)
    tuned = output(policy.denoiser)
    with policy.reference():
        assert (output(policy.denoiser) - whole).norm() < NEAR["int8"] * whole.norm()
    assert torch.equal(output(policy.denoiser), tuned)


# Memory


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4.127)])
def test_stored_bytes_of_a_large_layer(kind, bits):
    pytest.importorskip(quantisation.PACKAGES[kind])
    layer = nn.Sequential(nn.Linear(256, 512, bias=False)).requires_grad_(False)
    assert stored_bytes(layer[0].weight) == 256 * 512 * 4
    quantise(layer, kind)
    layer.to(CPU)
    weight = layer[0].weight
    rows = 512 * (4 + 1) if kind == "int8" else 0  # a scale and a zero a row
    assert stored_bytes(weight) == pytest.approx(256 * 512 * bits / 8 + rows, rel=1e-3)
    assert quantisation.entries(weight) == 256 * 512
    with torch.device("meta"):
        bare = nn.Sequential(nn.Linear(256, 512, bias=False)).requires_grad_(False)
    quantise(bare, kind)
    assert stored_bytes(bare[0].weight) == stored_bytes(weight), "known before there are weights"


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_have_digests(kind):
    def digest(change=0.0):
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(64, 64)).requires_grad_(False)
        layer[0].weight[3, 5] += change
        quantise(layer, kind)
        return digests.of_tensors(layer.to(CPU).state_dict().items())

    assert digest() == digest() != digest(change=0.5)


@INT8
def test_the_estimate_counts_what_is_stored_and_what_learning_keeps(folders):
    whole, small = (policy_of(settings(folders.model, kind)).denoiser for kind in ("none", "int8"))
    before, after = (estimate(each, 4, 2, training=True) for each in (whole, small))
    saved = sum(p.numel() * 4 - stored_bytes(p) for p in quantised(small.module).values())
    assert after.weights == before.weights - saved < before.weights
    # Autograd keeps the 8-bit layers' weights in full precision, but with gradient checkpointing only one block's.
    linear = sum(p.numel() * 4 for p in quantised(small.module).values())
    assert kept_for_backward(small.module, torch.float32) == linear
    assert after.learning == before.learning + linear
    assert (after.sampling, after.decode, after.optimiser) == (before.sampling, before.decode, before.optimiser)
    for each in (whole, small):
        each.module.enable_gradient_checkpointing()
    assert estimate(small, 4, 2, training=True).learning == estimate(whole, 4, 2, training=True).learning


# Runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_its_resumption_and_its_result(folders, tmp_path, kind):
    def config(name, rounds):
        return tiny_config(tmp_path, name=name, model=settings(folders.model, kind).model_dump(), rewards=["brightness"],
                           sampler={"guidance": 1.0}, run={"rounds": rounds})  # fmt: skip

    whole = Trainer(config("whole", 2))
    frozen = {name: p.detach().clone() for name, p in whole.parts.policy.denoiser.module.named_parameters()}
    whole.train()
    moved = {
        name
        for name, p in whole.parts.policy.denoiser.module.named_parameters()
        if not torch.equal(dense(p), dense(frozen[name]))
    }
    assert moved
    assert all(".lora_" in name for name in moved)
    assert quantised(whole.parts.policy.denoiser.module)

    Trainer(config("part", 1)).train()
    Trainer.resume(tmp_path / "part", ["run.rounds=2"]).train()
    for run in ("whole", "part"):
        assert (tmp_path / run / "final" / WEIGHTS_NAME).is_file()
    first, second = ((tmp_path / run / "final" / WEIGHTS_NAME).read_bytes() for run in ("whole", "part"))
    assert first == second

    run = tmp_path / "whole"
    policy = whole.parts.policy
    beside = make_denoiser(tuned_pipeline(whole.config, run, beside=True), whole.config.sampler, whole.config.model)
    assert quantised(beside.module)
    assert largest_difference(output(beside), output(policy.denoiser)) < 1e-4

    merged = diffusers.DiffusionPipeline.from_pretrained(export_run(run, "merged"))
    assert not quantised(merged.unet)
    plain = diffusers.DiffusionPipeline.from_pretrained(folders.model)
    plain.load_lora_weights(run / "final")
    drawn = [pictures(each) for each in (merged, plain, tuned_pipeline(whole.config, run))]
    assert largest_difference(drawn[0], drawn[1]) < 1e-3
    assert largest_difference(drawn[0], drawn[2]) < 1e-3


def dense(parameter):
    return parameter.dequantize() if type(parameter).__name__ == "Int8Tensor" else parameter


def pictures(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        PROMPTS, num_inference_steps=2, guidance_scale=1.0, generator=generators(len(PROMPTS)), output_type="pt"
    ).images
    return images if isinstance(images, torch.Tensor) else torch.from_numpy(images)


@pytest.mark.slow
@INT8
def test_it_learns_as_whole_weights_do(tmp_path):
    """Three seeds of eight rounds towards small files: the rewards that they end with lie within the spread of those of fp32."""
    task = ("prompts=world-objects", "rewards=[jpeg_compressibility]", "sampler.steps=2", "rollout.batch_size=64")
    rate = ("optimizer.lr=6.5e-4", "optimizer.max_pace=4", "evaluation.images=2")

    def rewards(seed, each):
        config = load_config(
            None,
            [*task, *rate, f"seed={seed}", f"model.quantisation={each}", "model.device=cpu"],
        )
        trainer = Trainer(config.model_copy(update={"output": str(tmp_path)}))
        return [trainer.round()["reward"] for _ in range(8)]

    ends = {}
    for each in ("none", "int8"):
        found = torch.tensor([rewards(seed, each) for seed in (0, 1, 2)])
        ends[each] = found[:, -2:].mean(1)
        assert (ends[each] > found[:, 0]).all()
    spread = ends["none"].max() - ends["none"].min()
    assert (ends["int8"] - ends["none"]).abs().max() < spread


# What is refused


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(quantisation.importlib.util, "find_spec", lambda name: None)
    for kind, package in quantisation.PACKAGES.items():
        with pytest.raises(
            ConfigError, match=rf"model.quantisation={kind} needs .*{package}: pip install .*bitsandbytes.*, or"
        ):
            load_pipeline(ModelSettings(device="cpu", quantisation=kind))
    load_pipeline(ModelSettings(device="cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_go_with_device_or_precision(kind):
    if kind == "nf4":
        with pytest.raises(
            ConfigError, match=r"nf4 computes on cpu or cuda, and the device is mps; use model.quantisation=int8,"
        ):
            check_quantisation(ModelSettings(quantisation=kind), torch.device("mps"), torch.float32)
        check_quantisation(ModelSettings(quantisation=kind), CPU, torch.float16)
    else:
        with pytest.raises(ConfigError, match=r"int8 goes with bf16 or fp32, and model.precision=auto is fp16 here.*nf4"):
            check_quantisation(ModelSettings(quantisation=kind), torch.device("cuda"), torch.float16)
        check_quantisation(ModelSettings(quantisation=kind), torch.device("cuda"), torch.bfloat16)


def test_sharding_takes_whole_weights(folders):
    with pytest.raises(
        ValueError, match=r"run.sharding=fsdp2 cannot share out .* model.quantisation=int8; use run.sharding=none"
    ):
        TrainConfig.model_validate({"model": {"quantisation": "int8"}, "run": {"sharding": "fsdp2"}})


@INT8
def test_sharding_takes_no_quantised_pipeline_either(folders):
    with pytest.raises(ConfigError, match=r"run.sharding=fsdp2 cannot share out weights of 8 or 4 bits"):
        shard(policy_of(settings(folders.model, "int8")), SimpleNamespace(size=2))


def test_distillation_takes_whole_weights(tmp_path):
    config = DistillConfig.model_validate(
        {"model": {"quantisation": "int8"}, "data": str(tmp_path), "output": str(tmp_path / "out")}
    )
    with pytest.raises(ConfigError, match=r"model.quantisation=int8: distillation trains all weights"):
        distill(config)


def test_the_doctor_says_how_weights_are_stored():
    precision = machine(TrainConfig.model_validate({"model": {"device": "cpu", "quantisation": "int8"}}))[1]
    assert "float32 weights, the network's linear layers stored as int8; latents" in precision.value
