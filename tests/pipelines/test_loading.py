"""Loading: what comes back is frozen and in place, and what cannot work is refused with its remedy."""

import json
import shutil

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_pipelines import PROMPTS, pixart, pixel, schedule, sdxl, stable_diffusion

from rlcm.errors import ConfigError, MissingFileError, SamplerError, WeightsError
from rlcm.pipelines import ModelSettings, SamplerSettings, load_pipeline, make_denoiser
from rlcm.pipelines.precision import resolve_device, resolve_dtype
from rlcm.pipelines.settings import LoraSettings


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "lcm"
    stable_diffusion(diffusers.LCMScheduler(**schedule())).save_pretrained(folder)
    return folder


def test_a_loaded_pipeline_is_frozen_and_samples_as_before(saved):
    pipeline = load_pipeline(ModelSettings(path=str(saved), device="cpu"))
    assert pipeline.safety_checker is None
    for component in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert not component.training
        assert not any(p.requires_grad for p in component.parameters())
        assert component.dtype is torch.float32
    original = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    settings = SamplerSettings(steps=2, guidance=1.0)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for each in (pipeline, original):
        denoiser = make_denoiser(each, settings)
        outputs.append(denoiser.denoise(x, torch.tensor([0, 1]), denoiser.encode(PROMPTS)))
    assert torch.equal(*outputs)


def test_precision_and_memory_settings(saved):
    settings = ModelSettings(
        path=str(saved),
        device="cpu",
        precision="bf16",
        gradient_checkpointing=True,
        attention_slicing=True,
        vae_slicing=True,
        vae_tiling=True,
        offload_text_encoders=True,
    )
    pipeline = load_pipeline(settings)
    assert pipeline.unet.dtype is torch.bfloat16
    assert pipeline.unet.is_gradient_checkpointing
    assert pipeline.vae.use_slicing
    assert pipeline.vae.use_tiling
    denoiser = make_denoiser(pipeline, SamplerSettings(steps=2, guidance=1.0), settings)
    conditioning = denoiser.encode(PROMPTS)
    assert conditioning["embeddings"].dtype is torch.bfloat16
    output = denoiser.denoise(denoiser.scale_noise(torch.randn(2, 4, 8, 8)), torch.tensor([0, 1]), conditioning)
    assert output.dtype is torch.float32
    assert denoiser.decode(output).dtype is torch.float32


@pytest.mark.parametrize(("force_upcast", "expected"), [(True, torch.float32), (False, torch.float16)])
def test_the_sdxl_vae_that_overflows_in_fp16_is_kept_in_fp32(tmp_path, force_upcast, expected):
    sdxl(diffusers.LCMScheduler(**schedule()), vae={"force_upcast": force_upcast}).save_pretrained(tmp_path / "xl")
    pipeline = load_pipeline(ModelSettings(path=str(tmp_path / "xl"), device="cpu", precision="fp16"))
    assert pipeline.vae.dtype is expected
    assert pipeline.unet.dtype is torch.float16
    assert pipeline.watermark is None


def lora_file(folder):
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    torch.manual_seed(4)
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipeline.unet)
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return pipeline


def test_loras_are_added_to_the_weights(saved, tmp_path):
    adapted = lora_file(tmp_path)
    once, half = (LoraSettings(path=str(tmp_path), scale=scale) for scale in (1.0, 0.5))
    plain, whole, halves = (
        load_pipeline(ModelSettings(path=str(saved), device="cpu", loras=loras)) for loras in ((), (once,), (half, half))
    )
    assert not any(p.requires_grad for p in whole.unet.parameters())
    settings = SamplerSettings(steps=2, guidance=1.0)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for each in (adapted, whole, halves, plain):
        denoiser = make_denoiser(each, settings)
        outputs.append(denoiser.denoise(x, torch.tensor([0, 1]), denoiser.encode(PROMPTS)))
    assert torch.allclose(outputs[1], outputs[0], atol=1e-5)
    assert torch.allclose(outputs[2], outputs[0], atol=1e-5)
    assert (outputs[3] - outputs[0]).abs().max() > 1e-2


def test_loras_that_cannot_be_applied(saved, tmp_path):
    with pytest.raises(MissingFileError, match=r"model\.loras"):
        load_pipeline(ModelSettings(path=str(saved), device="cpu", loras=(LoraSettings(path=str(tmp_path)),)))
    with pytest.raises(MissingFileError, match="neither a file"):
        load_pipeline(ModelSettings(path=str(saved), device="cpu", loras=(LoraSettings(path=str(tmp_path / "none")),)))
    sdxl_folder = tmp_path / "xl"
    sdxl(diffusers.LCMScheduler(**schedule())).save_pretrained(sdxl_folder)
    lora_file(tmp_path / "lora")
    with pytest.raises(WeightsError, match="does not fit"):  # SDXL's text embeddings are wider
        load_pipeline(ModelSettings(path=str(sdxl_folder), device="cpu", loras=(LoraSettings(path=str(tmp_path / "lora")),)))
    pixart(diffusers.LCMScheduler(**schedule())).save_pretrained(tmp_path / "pixart")
    with pytest.raises(ConfigError, match="no LoRA loader"):
        load_pipeline(ModelSettings(path=str(tmp_path / "pixart"), device="cpu", loras=(LoraSettings(path="x/y"),)))


def refuse(path, error, match, **settings):
    with pytest.raises(error, match=match):
        load_pipeline(ModelSettings(path=str(path), device="cpu", **settings))


def test_missing_models(tmp_path, monkeypatch):
    refuse(tmp_path / "nothing" / "here", MissingFileError, "neither a folder nor")
    refuse(tmp_path, MissingFileError, r"no model_index\.json")
    refuse("nobody/nothing", MissingFileError, "Hugging Face Hub", local_files_only=True)


def test_broken_folders(saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    shutil.rmtree(copy / "vae")
    refuse(copy, MissingFileError, "lacks its component 'vae'")

    copy = tmp_path / "pickled"
    shutil.copytree(saved, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")
    refuse(copy, MissingFileError, "no pickled weights")

    copy = tmp_path / "text"
    shutil.copytree(saved, copy)
    (copy / "text_encoder" / "model.safetensors").unlink()
    refuse(copy, MissingFileError, "cannot be loaded")
    refuse(saved, MissingFileError, "fp16", variant="fp16")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ("{", "not a pipeline's index"),
        ("[]", "not a pipeline's index"),
        (json.dumps({"_class_name": "HunyuanDiTPipeline"}), "cannot train; it takes Latent"),
        (json.dumps({"_class_name": ["custom", "MyPipeline"]}), "its own pipeline code"),
    ],
)
def test_unsupported_pipelines(tmp_path, index, match):
    (tmp_path / "model_index.json").write_text(index)
    refuse(tmp_path, ConfigError, match)


def test_settings_that_do_not_fit(saved, tmp_path):
    pipeline = load_pipeline(ModelSettings(path=str(saved), device="cpu"))
    with pytest.raises(ConfigError, match="use auto or one of lcm, tcd"):
        make_denoiser(pipeline, SamplerSettings(scheduler="scm"))
    with pytest.raises(ConfigError, match="no effect"):
        make_denoiser(pipeline, SamplerSettings(guidance=1.0, negative_prompt="grey"))
    with pytest.raises(SamplerError, match="eta"):
        make_denoiser(pipeline, SamplerSettings(scheduler="lcm", guidance=1.0, eta=0.5))
    pipeline.scheduler = diffusers.PNDMScheduler(**schedule())
    with pytest.raises(SamplerError, match=r"keeps this model's PNDMScheduler.*Set sampler\.scheduler to one of lcm"):
        make_denoiser(pipeline, SamplerSettings())
    with pytest.raises(ConfigError, match="cannot train"):
        make_denoiser(object(), SamplerSettings())
    pixel().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no VAE"):
        load_pipeline(ModelSettings(path=str(tmp_path), device="cpu", vae_slicing=True))


def test_sizes_must_fit_the_grid():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    pipeline.vae_scale_factor = 16
    with pytest.raises(ConfigError, match=r"model\.height=24 .* multiple of 16, e\.g\. 16"):
        make_denoiser(pipeline, SamplerSettings(guidance=1.0), ModelSettings(height=24))


def test_devices_and_precisions():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match=r"model\.device='cuda:7'"):
        resolve_device("cuda:7")
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert resolve_dtype("auto", torch.device("mps")) is torch.float32
    assert resolve_dtype("fp16", torch.device("cpu")) is torch.float16
    with pytest.raises(ValueError, match="device"):
        ModelSettings(device="gpu")


def test_a_final_std_makes_the_last_step_an_action(saved):
    pipeline = load_pipeline(ModelSettings(path=str(saved), device="cpu"))
    plain = make_denoiser(pipeline, SamplerSettings(steps=3, guidance=1.0)).table
    noisy = make_denoiser(pipeline, SamplerSettings(steps=3, guidance=1.0, final_std=0.05)).table
    assert plain.noisy_steps().tolist() == [0, 1]
    assert noisy.noisy_steps().tolist() == [0, 1, 2]
    assert float(noisy.std[-1]) == pytest.approx(0.05)
