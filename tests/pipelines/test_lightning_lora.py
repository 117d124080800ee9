"""A Lightning LoRA on Qwen-Image, in the spellings that are published: pictures are those of diffusers' own loader."""

import math

import pytest
import torch
from lora_spellings import factors_for, kohya, peft
from safetensors.torch import save_file
from tiny_flow import PROMPTS, euler, own_images, qwen_image, stochastic
from tiny_pipelines import distance
from tiny_runs import lcm_pipeline

from rlcm.errors import ConfigError, WeightsError
from rlcm.pipelines import LoraSettings, ModelSettings, SamplerSettings, load_pipeline, make_denoiser, preview_table
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.usage import usage

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out", "img_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1")
SPELLINGS = {
    "dotted, with alphas": lambda lora: kohya(lora, "", "."),  # as Qwen-Image-Lightning is published
    "kohya": kohya,
    "ComfyUI": lambda lora: kohya(lora, "diffusion_model.", "."),
    "diffusers": lambda lora: peft(lora, "transformer."),
}
CALL = {"num_inference_steps": 4, "true_cfg_scale": 1.0, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("qwen")
    pipeline = qwen_image(stochastic(shift=3.0))
    pipeline.save_pretrained(root / "model")
    return root


@pytest.fixture(scope="module")
def lora(folder):
    return factors_for(qwen_image(stochastic()).transformer, *LAYERS, size=0.2)


def drawn(folder, *loras):
    """Return rlcm's own pictures, and the noise that they began with."""
    model = ModelSettings(path=str(folder / "model"), loras=loras, height=16, width=16)
    denoiser = make_denoiser(load_pipeline(model), SamplerSettings(steps=4, guidance=1.0), model)
    noise = torch.randn(len(PROMPTS), *denoiser.latent_shape, generator=torch.Generator().manual_seed(1))
    return euler(denoiser, denoiser.encode(PROMPTS), noise), noise


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_pictures_are_those_of_diffusers_own_loader(spelling, fuse, folder, lora, tmp_path):
    save_file(SPELLINGS[spelling](lora), tmp_path / "Lightning-4steps.safetensors")
    save_file(
        SPELLINGS[spelling](factors_for(qwen_image(stochastic()).transformer, "to_q")),
        tmp_path / "Lightning-8steps.safetensors",
    )
    given = LoraSettings(path=str(tmp_path), weight_name="Lightning-4steps.safetensors", fuse=fuse)
    found, noise = drawn(folder, given)
    pipeline = qwen_image(stochastic(shift=3.0))
    pipeline.load_lora_weights(tmp_path, weight_name="Lightning-4steps.safetensors")
    assert distance(found, own_images(pipeline, PROMPTS, noise, **CALL)) < 1e-5
    # Without it, at half its strength, and with the file beside it, pictures are others.
    others = [
        (),
        (given.model_copy(update={"scale": 0.5}),),
        (given.model_copy(update={"weight_name": "Lightning-8steps.safetensors"}),),
    ]
    for loras in others:
        assert distance(found, drawn(folder, *loras)[0]) > 1e-3


def test_without_their_alphas_the_factors_say_something_else(folder, lora, tmp_path):
    tensors = SPELLINGS["dotted, with alphas"](lora)
    save_file(tensors, tmp_path / "with.safetensors")
    save_file({key: value for key, value in tensors.items() if "alpha" not in key}, tmp_path / "without.safetensors")
    pictures = [drawn(folder, LoraSettings(path=str(tmp_path / f"{name}.safetensors")))[0] for name in ("with", "without")]
    assert distance(*pictures) > 1e-3


def test_one_that_was_made_for_more_blocks_is_refused(folder, lora, tmp_path):
    more = {name.replace("transformer_blocks.1.", "transformer_blocks.59."): part for name, part in lora.items()}
    save_file(kohya(more, "", "."), tmp_path / "lora.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit QwenImagePipeline.*transformer_blocks\.59"):
        drawn(folder, LoraSettings(path=str(tmp_path / "lora.safetensors")))


QWEN = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
LIGHTNING = {**QWEN, "base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}


@pytest.mark.parametrize("size", [(16, 16), (16, 32)])
def test_its_shift_takes_the_place_of_the_models_own(size):
    """As the LoRA's authors make their scheduler: by an exponent of log 3 at every size, and no terminal value."""
    model = ModelSettings(height=size[0], width=size[1])

    def denoiser(options, **sampler):
        return make_denoiser(qwen_image(stochastic(**options)), SamplerSettings(steps=8, guidance=1.0, **sampler), model)

    shifted, theirs, own = denoiser(QWEN, shift=3.0), denoiser(LIGHTNING), denoiser(QWEN)
    assert torch.allclose(shifted.table.timesteps, theirs.table.timesteps, atol=1e-3)
    assert torch.allclose(shifted.table.std, theirs.table.std, atol=1e-6)
    assert shifted.table.timesteps[-1].item() == pytest.approx(300, abs=0.1)
    assert own.table.timesteps[-1].item() == pytest.approx(20, abs=0.1)
    noise = torch.randn(1, *shifted.latent_shape, generator=torch.Generator().manual_seed(1))
    call = {**CALL, "num_inference_steps": 8, "height": size[0], "width": size[1]}
    images = euler(shifted, shifted.encode(PROMPTS[:1]), noise)
    assert distance(images, own_images(theirs.pipeline, PROMPTS[:1], noise, **call)) < 1e-5
    assert distance(images, own_images(own.pipeline, PROMPTS[:1], noise, **call)) > 1e-3


def test_the_usage_says_the_shift():
    values = {"model": {"path": "Qwen/Qwen-Image"}, "sampler": {"steps": 8, "guidance": 1.0, "shift": 3.0, "eta": 0.0}}
    text = usage(parse_settings(TrainConfig, values), "me/tuned", "QwenImagePipeline", "Qwen/Qwen-Image", "a fox")
    line = next(line for line in text.splitlines() if line.startswith("pipe.scheduler = "))
    pipe = qwen_image(stochastic(**QWEN))
    exec(line, {"pipe": pipe})
    config = pipe.scheduler.config
    assert (config.shift, config.use_dynamic_shifting, config.shift_terminal) == (3.0, False, None)
    assert config.stochastic_sampling is False


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 101])
def test_a_shift_that_is_none(value):
    with pytest.raises(ValueError, match="shift"):
        SamplerSettings(shift=value)


def test_a_shift_belongs_to_flow_matching(folder):
    with pytest.raises(ConfigError, match=r"sampler\.shift=3 belongs to models of flow matching.*leave it out"):
        make_denoiser(lcm_pipeline(), SamplerSettings(shift=3.0))
    model = ModelSettings(path=str(folder / "model"), height=16, width=16)
    for scheduler in ("auto", "flow_lcm", "flow_euler_stochastic"):
        sampler = SamplerSettings(steps=4, scheduler=scheduler, guidance=1.0, shift=3.0)
        table = make_denoiser(load_pipeline(model), sampler, model).table
        assert torch.allclose(table.timesteps, preview_table(model, sampler).timesteps)
        assert table.timesteps.tolist() == pytest.approx([1000, 900, 750, 500], abs=1e-2)
