"""TF32, the order of weights in memory, compilation, decoding in parts: what each does, and what is said where it cannot be."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tiny_pipelines import PROMPTS, generators, schedule, stable_diffusion
from tiny_runs import brightness, largest_difference, lcm_pipeline, tiny_config, tiny_denoiser, tiny_policy

from rlcm.errors import ConfigError
from rlcm.learning.mismatch import computes_alike
from rlcm.learning.optimisation import OptimizerSettings, make_optimizer
from rlcm.pipelines import ModelSettings, SamplerSettings, acceleration, load_pipeline, make_denoiser
from rlcm.policy.rollout import decode_images
from rlcm.training.trainer import Trainer


@pytest.fixture
def folder(tmp_path):
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule(clip_sample=False)), time_cond_proj_dim=8)
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def images(model):
    denoiser = make_denoiser(load_pipeline(model), SamplerSettings(scheduler="lcm", steps=2, guidance=1.0), model)
    conditioning = denoiser.encode(PROMPTS)
    x = denoiser.scale_noise(torch.stack([torch.randn(denoiser.latent_shape, generator=g) for g in generators(len(PROMPTS))]))
    step = torch.zeros(len(PROMPTS), dtype=torch.long)
    with torch.no_grad():
        return decode_images(denoiser, denoiser.denoise(x, step, conditioning))


def test_channels_last_changes_where_weights_lie_and_not_what_they_say(folder):
    plain, last = (ModelSettings(path=str(folder), channels_last=on) for on in (False, True))
    weights = load_pipeline(last).unet.conv_in.weight
    assert weights.is_contiguous(memory_format=torch.channels_last)
    assert not weights.is_contiguous()
    assert largest_difference(images(plain), images(last)) < 1e-5


def test_decoding_in_parts_gives_the_same_images(folder):
    plain, parts = ModelSettings(path=str(folder)), ModelSettings(path=str(folder), decode_batch_size=1)
    assert largest_difference(images(plain), images(parts)) < 1e-6


def test_decoding_takes_at_most_as_many_at_once(monkeypatch):
    denoiser = tiny_denoiser()
    denoiser.decode_batch_size = 2
    sizes, real = [], denoiser.decode
    monkeypatch.setattr(denoiser, "decode", lambda latents: (sizes.append(len(latents)), real(latents))[1])
    assert len(decode_images(denoiser, torch.randn(5, *denoiser.latent_shape))) == 5
    assert sizes == [2, 2, 1]


def test_tf32_where_there_is_none_is_refused(folder):
    with pytest.raises(
        ConfigError, match=r"model\.tf32=true, but TF32 .* this run is on a cpu device .* leave model\.tf32 at false"
    ):
        load_pipeline(ModelSettings(path=str(folder), tf32=True))


def test_on_cuda_tf32_is_what_the_setting_says(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for wanted in (True, False):
            acceleration.use_tf32(wanted, torch.device("cuda"))
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (wanted, wanted)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        with pytest.raises(ConfigError, match=r"model\.tf32=true"):
            acceleration.use_tf32(True, torch.device("cuda"))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_channels_last_without_convolutions_is_refused():
    class Pipeline:
        transformer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Conv2d(2, 2, 1))

    with pytest.raises(ConfigError, match=r"model\.channels_last=true, but Sequential is no network of convolutions"):
        acceleration.order_channels_last(Pipeline(), "transformer")


def test_compiling_without_a_compiler_is_refused_before_weights_are_read(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(
        ConfigError, match=r"model\.compile=true, but there is no compiler for the cpu .* install a C\+\+ compiler"
    ):
        load_pipeline(ModelSettings(path="builtin", compile=True))
    with pytest.raises(ConfigError, match=r"no compiler for the mps device on this machine; or leave"):
        acceleration.require_compiler(torch.device("mps"))


def test_a_compiled_network_takes_the_old_means_of_learning(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, *_, **__: compiled.append(type(module).__name__))
    policy = tiny_policy()
    assert computes_alike(policy.denoiser)
    policy.denoiser.compile()
    assert set(compiled) == {"BasicTransformerBlock"}
    assert not computes_alike(policy.denoiser)


def test_a_compiled_run_begins_at_ratio_1_and_learns_what_the_plain_one_does(tmp_path, monkeypatch):
    real = torch.nn.Module.compile
    # Traced and taken apart as for any compiler; generating code for the pieces would take minutes.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **given: real(module, backend="aot_eager", **given))

    def reward(images, prompts):
        return images.mean((1, 2, 3))

    found = {}
    for on in (False, True):
        config = tiny_config(
            tmp_path / str(on),
            model={"compile": on},
            algorithm={"old_policy": "learning"},
            rollout={"batch_size": 4},
            run={"rounds": 1, "micro_batch_size": 3},
        )
        made = Trainer(config, model=lcm_pipeline(mid_block_type=None), rewards=[reward], prompts=PROMPTS)
        assert made.parts.policy.denoiser.is_compiled is on
        found[on] = made.round()
    assert found[True]["ratio_deviation_max"] == 0
    assert found[True]["reward"] == pytest.approx(found[False]["reward"], rel=1e-4)
    assert found[True]["grad_norm"] == pytest.approx(found[False]["grad_norm"], rel=1e-2)


def test_a_fused_optimiser_steps_as_the_plain_one():
    results = []
    for fused in ("auto", "never", "always"):
        parameter = torch.nn.Parameter(torch.ones(5))
        optimiser = make_optimizer(OptimizerSettings(fused=fused, lr=0.1), [parameter])
        assert bool(optimiser.defaults["fused"]) is (fused == "always")
        parameter.grad = torch.arange(5.0)
        optimiser.step()
        results.append(parameter.detach())
    assert largest_difference(results[0], results[2]) < 1e-6
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("name", ["quantisation", "channels_last"])
def test_what_acts_on_loading_is_refused_for_a_loaded_pipeline(name, tmp_path):
    value = {"quantisation": "int8", "channels_last": True}[name]
    with pytest.raises(
        ConfigError, match=rf"model\.{name}={str(value).lower()} acts while a model is loaded, .* leave the setting out"
    ):
        Trainer(tiny_config(tmp_path, model={name: value}), model=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS)


def test_weights_that_were_loaded_in_inference_mode_are_refused_and_the_mode_itself_is_not(tmp_path, folder):
    with torch.inference_mode():
        loaded = lcm_pipeline()
    with pytest.raises(ConfigError, match=r"was loaded under torch\.inference_mode\(\), .* load it outside"):
        Trainer(tiny_config(tmp_path), model=loaded, rewards=[brightness], prompts=PROMPTS)
    with torch.inference_mode():
        config = tiny_config(tmp_path, model={"path": str(folder)})
        assert Trainer(config, rewards=[brightness], prompts=PROMPTS).round()["grad_norm"] > 0


def test_a_block_may_be_compiled_more_often_than_torch_allows_by_itself(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, *_, **__: None)
    tiny_denoiser().compile()
    assert torch._dynamo.config.recompile_limit == acceleration.GRAPHS
