"""The flow-matching models: plain Euler steps of rlcm's own denoiser give the pipeline's own images, and a wrong denoiser does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from tiny_flow import PROMPTS, ernie, euler, klein, krea, own_images, qwen_image, sd3, stochastic, z_image
from tiny_pipelines import distance, flux

from rlcm.errors import ConfigError
from rlcm.pipelines import ModelSettings, PipelineDenoiser, SamplerSettings, make_denoiser
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.types import Conditioning

EXACT = 1e-6
DIFFERENT = 1e-4


@dataclass(frozen=True)
class Model:
    """A model, and what its pipeline's call needs to sample as rlcm does."""

    build: Callable[..., Any]
    guided_by: str = "guidance_scale"
    off: float = 1.0
    base: Mapping[str, Any] = field(default_factory=dict)
    """What makes it one that takes guidance."""
    negative: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    dynamic: bool = True
    """Whether the pipeline gives its scheduler a mu."""


MODELS = {
    "flux": Model(flux, negative=False, base={"guidance_embeds": True}),
    "z_image": Model(z_image, off=0.0),
    "klein": Model(klein, base={"is_distilled": False}, negative=False),
    "sd3": Model(sd3),
    "qwen_image": Model(qwen_image, guided_by="true_cfg_scale"),
    "krea": Model(krea, off=0.0, base={"is_distilled": False}),
    "ernie": Model(ernie, extra={"use_pe": False}, dynamic=False),
}


@cache
def built(name: str, guided: bool) -> Any:
    """Return a pipeline for all tests that leave its networks alone; what it once said about prompts is kept."""
    pipeline = MODELS[name].build(stochastic(), **(MODELS[name].base if guided else {}))
    encode, said = pipeline.encode_prompt, {}

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, kwargs))
        if key not in said:
            said[key] = encode(*args, **kwargs)
        return said[key]

    pipeline.encode_prompt = encode_prompt
    return pipeline


def of(name: str, size=(16, 24), steps=3, guidance: float | None = None, scheduler: Any = None, pipeline=None, **settings: Any):
    model = MODELS[name]
    pipeline = pipeline or built(name, guidance is not None)
    pipeline.scheduler = scheduler or stochastic(shift=3.0)
    scale = guidance if guidance or name == "flux" else model.off
    sampler = SamplerSettings(steps=steps, guidance=scale, **settings)
    return make_denoiser(pipeline, sampler, ModelSettings(height=size[0], width=size[1]))


def start(denoiser: PipelineDenoiser, count=3) -> torch.Tensor:
    return torch.randn(count, *denoiser.latent_shape, generator=torch.Generator().manual_seed(1))


def own(name: str, denoiser: PipelineDenoiser, noise: torch.Tensor, prompts=PROMPTS, **changes: Any) -> torch.Tensor:
    """Return the pipeline's own images of the same settings."""
    model, sampler = MODELS[name], denoiser.sampler
    call = {"num_inference_steps": sampler.steps, "height": denoiser.height, "width": denoiser.width, **model.extra}
    call[model.guided_by] = denoiser.guidance
    if model.negative and sampler.negative_prompt:
        call["negative_prompt"] = [sampler.negative_prompt] * len(prompts)
    if name == "sd3":
        call["sigmas"] = [1 - i / sampler.steps for i in range(sampler.steps)]
    if name == "klein":  # which packs even the latents that it is given
        noise = noise.transpose(1, 2).reshape(len(noise), -1, *denoiser.patches())
    return own_images(denoiser.pipeline, prompts, noise, **call | changes)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 8)])
@pytest.mark.parametrize("name", MODELS)
def test_images_are_the_pipelines_own(name, size):
    denoiser = of(name, size)
    noise = start(denoiser)
    images = own(name, denoiser, noise)
    assert images.shape == (3, 3, *size)
    assert images.std() > 0.03
    assert distance(euler(denoiser, denoiser.encode(PROMPTS), noise), images) < EXACT
    # One prompt alone is as it is among longer ones.
    assert distance(euler(denoiser, denoiser.encode(PROMPTS[:1]), noise[:1]), images[:1]) < 3 * EXACT


SHIFTS = {
    "dynamic": {"use_dynamic_shifting": True},
    "Qwen-Image": {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "shift_terminal": 0.02},
    "Lightning": {"use_dynamic_shifting": True, "base_shift": math.log(3), "max_shift": math.log(3)},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear", "max_image_seq_len": 6400},
    "none": {"shift": 1.0},
}


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_time_shift_is_the_pipelines_own(name, shift):
    options = SHIFTS[shift]
    if not MODELS[name].dynamic and "use_dynamic_shifting" in options:
        return  # its pipeline gives no mu, and could not draw itself
    denoiser = of(name, scheduler=stochastic(**options))
    noise = start(denoiser, 1)
    images = own(name, denoiser, noise, PROMPTS[:1])
    assert distance(euler(denoiser, denoiser.encode(PROMPTS[:1]), noise), images) < EXACT
    # The pipeline's call has left its noise levels in its scheduler's copy; ours are in the table.
    other = of(name, scheduler=stochastic(shift=7.0))
    assert distance(euler(other, other.encode(PROMPTS[:1]), noise), images) > DIFFERENT


@pytest.mark.parametrize("name", MODELS)
def test_guidance_is_the_pipelines_own(name):
    steps = 8 if "is_distilled" in MODELS[name].base else 2
    negative = {"negative_prompt": "a dog at sea"} if MODELS[name].negative else {}
    denoiser = of(name, steps=steps, guidance=3.5, **negative)
    noise = start(denoiser)
    images = own(name, denoiser, noise)
    conditioning = denoiser.encode(PROMPTS)
    assert distance(euler(denoiser, conditioning, noise), images) < 2 * EXACT
    denoiser.guidance = 2.0
    assert distance(euler(denoiser, conditioning, noise), images) > DIFFERENT
    if negative:
        denoiser.guidance = 3.5
        swapped = Conditioning({key: value.roll(1, 0) if "negative" not in key else -value if value.is_floating_point() else value
                                for key, value in conditioning.items()})  # fmt: skip
        assert distance(euler(denoiser, swapped, noise), images) > DIFFERENT


def spoil_sign(denoiser):
    denoiser.sign = -denoiser.sign


def spoil_time(denoiser):
    right = denoiser.time
    denoiser.time = lambda t: right(1000 - t)


def spoil_ids(denoiser):
    if hasattr(denoiser, "image_ids"):
        order = (0, 2, 1, 3)[: denoiser.image_ids.shape[-1]]
        call, ids = denoiser.call, denoiser.image_ids

        def with_wrong_ids(*args):
            denoiser.image_ids = ids[..., order]
            try:
                return call(*args)
            finally:
                denoiser.image_ids = ids

        denoiser.call = with_wrong_ids
    else:
        rows, columns = denoiser.patches()
        denoiser.patches = lambda: (columns, rows)


def spoil(name):
    """Change the tensors of a name."""

    def change(conditioning):
        value = conditioning[name]
        other = torch.ones_like(value) if value.dtype == torch.bool else torch.zeros_like(value)
        return Conditioning({**conditioning, name: other})

    return change


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_denoiser_gives_other_images(name):
    right = of(name)
    noise, conditioning = start(right), right.encode(PROMPTS)
    images = own(name, right, noise)
    wrong = [spoil_sign, spoil_time]
    if name in ("flux", "klein", "qwen_image", "krea"):
        wrong.append(spoil_ids)
    for change in wrong:
        denoiser = of(name)
        change(denoiser)
        assert distance(euler(denoiser, conditioning, noise), images) > DIFFERENT, change.__name__
    for part in conditioning:
        assert distance(euler(right, spoil(part)(conditioning), noise), images) > DIFFERENT, part
    assert distance(euler(right, conditioning.take(torch.tensor([1, 2, 0])), noise), images) > DIFFERENT


@pytest.mark.parametrize("guidance", [None, 3.5])
@pytest.mark.parametrize("name", MODELS)
def test_steps_mixed_in_one_batch_are_as_one_at_a_time(name, guidance):
    denoiser = of(name, guidance=guidance, steps=8 if guidance else 3)
    conditioning, x = denoiser.encode(PROMPTS), start(denoiser)
    step = torch.tensor([2, 0, 1])
    with torch.no_grad():
        together = denoiser.denoise(x, step, conditioning)
        for row in range(3):
            alone = denoiser.denoise(x[row : row + 1], step[row : row + 1], conditioning.take(torch.tensor([row])))
            assert torch.allclose(together[row : row + 1], alone, atol=2e-6, rtol=1e-5)
        assert not torch.allclose(together, denoiser.denoise(x, step.roll(1), conditioning), atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_layer_of_the_default_lora(name):
    denoiser = of(name, pipeline=MODELS[name].build(None))
    policy = Policy(denoiser, AdapterSettings(rank=2, alpha=4))
    conditioning, x, step = denoiser.encode(PROMPTS), start(denoiser), torch.tensor([0, 1, 2])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            denoiser.module.enable_gradient_checkpointing()
        x.requires_grad_(True)
        denoiser.denoise(x, step, conditioning).square().mean().backward()
        assert x.grad is not None
        gradients.append([p.grad.clone() for key, p in policy.named_parameters.items() if "lora_B" in key])
        for parameter in (x, *policy.parameters):
            parameter.grad = None
    assert len(gradients[0]) >= 4
    for plain, again in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_decoding_has_a_gradient(name):
    denoiser = of(name)
    latents = (0.1 * start(denoiser, 2)).requires_grad_(True)
    denoiser.decode(latents).mean().backward()
    assert latents.grad.abs().min(dim=0).values.max() > 0
    assert latents.grad[0].count_nonzero() > latents[0].numel() / 2


def test_prompts_are_padded_to_the_longest_of_all_batches():
    denoiser = of("z_image", guidance=3.0, negative_prompt="a very long text of what is to be left out of the picture")
    prompts = [*(["a"] * 8), "a much longer prompt than the others"]  # in a second batch of eight
    conditioning = denoiser.encode(prompts)
    lengths = conditioning["mask"].sum(1)
    assert lengths[:8].unique().tolist() == [lengths[0]]
    assert lengths[8] > lengths[0]
    assert conditioning["mask"].shape == conditioning["negative_mask"].shape
    assert conditioning["embeddings"].shape[1] == conditioning["negative_mask"].sum(1).max()
    alone = denoiser.encode(prompts[8:])
    noise = start(denoiser, 1)
    assert distance(euler(denoiser, conditioning.take(torch.tensor([8])), noise), euler(denoiser, alone, noise)) < 3 * EXACT
    assert prompts[0] == "a"  # the pipeline writes into the list that it is given


@pytest.mark.parametrize(("name", "given"), [("klein", 3.5), ("krea", 0.5), ("flux", 3.5)])
def test_guidance_on_a_distilled_model_is_refused(name, given):
    build = MODELS[name].build
    pipeline = build(stochastic(), guidance_embeds=False) if name == "flux" else build(stochastic())
    size = ModelSettings(height=16, width=16)
    with pytest.raises(ConfigError, match=rf"sampler.guidance={given}.*distilled.*leave it out"):
        make_denoiser(pipeline, SamplerSettings(steps=2, guidance=given), size)
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=2), size)
    assert not denoiser.classifier_free
    assert set(denoiser.encode(["a"])) <= {"embeddings", "mask", "pooled"}
    off = MODELS[name].off
    assert make_denoiser(pipeline, SamplerSettings(steps=2, guidance=off), size).guidance == off


@pytest.mark.parametrize(("name", "many"), [("klein", 50), ("krea", 28)])
def test_few_steps_of_a_base_model_are_refused(name, many):
    pipeline = MODELS[name].build(stochastic(), is_distilled=False)
    with pytest.raises(ConfigError, match=rf"sampler.steps=4.*not distilled.*sampler.steps={many}.*model.loras"):
        make_denoiser(pipeline, SamplerSettings(steps=4), ModelSettings(height=16, width=16))
    assert len(make_denoiser(pipeline, SamplerSettings(steps=many), ModelSettings(height=16, width=16)).table) == many
    distilling = ModelSettings(height=16, width=16, loras=({"path": "a/b"},))
    assert len(make_denoiser(pipeline, SamplerSettings(steps=4), distilling).table) == 4


@pytest.mark.parametrize("name", MODELS)
def test_sizes_off_the_grid_and_the_models_own(name):
    pipeline = built(name, False)
    pipeline.scheduler = stochastic()
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=2), ModelSettings(height=16, width=24))
    grid = denoiser.height // denoiser.patches()[0]
    assert denoiser.patches() == (16 // grid, 24 // grid)
    off = ModelSettings.model_construct(**{**ModelSettings().model_dump(), "height": 16, "width": 16 + grid // 2})
    with pytest.raises(ConfigError, match=rf"model.width={16 + grid // 2} does not fit.*multiple of {grid}, e.g. 16"):
        make_denoiser(pipeline, SamplerSettings(steps=2), off)
    if name != "sd3":  # whose own size is the tiny one
        assert make_denoiser(pipeline, SamplerSettings(steps=2)).height in (256, 1024)


def test_sd3_has_positions_for_so_many_patches():
    with pytest.raises(ConfigError, match=r"model.height=56.*12 patches a side; use 48 pixels at most"):
        of("sd3", size=(56, 16))
    assert of("sd3", size=(48, 16)).latent_shape == (4, 24, 8)


def test_qwen_is_unguided_unless_it_is_told_what_to_avoid():
    pipeline = qwen_image(stochastic())
    size = ModelSettings(height=16, width=16)
    assert not make_denoiser(pipeline, SamplerSettings(steps=2), size).classifier_free
    assert make_denoiser(pipeline, SamplerSettings(steps=2, negative_prompt="fog"), size).guidance == 4.0
    assert make_denoiser(pipeline, SamplerSettings(steps=2, guidance=2.0), size).guidance == 2.0
