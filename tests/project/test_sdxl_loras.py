"""The configurations of distilling LoRAs on SDXL sample as the authors of these LoRAs say, on a tiny random SDXL."""

import diffusers
import pytest
import torch
from lora_spellings import factors_for, kohya
from safetensors.torch import save_file
from shipped_configs import ROOT, euler, tiny
from tiny_pipelines import distance, sdxl
from tiny_runs import largest_difference

from rlcm.pipelines import LoraSettings, ModelSettings, SamplerSettings, load_pipeline, make_denoiser
from rlcm.policy.transitions import transition
from rlcm.training.config import load_config
from rlcm.training.usage import usage

NAMES = ("sdxl-hyper-sd-24gb", "sdxl-dmd2-24gb", "sdxl-lightning-24gb")
PROMPTS = ["a red cat", "two blue dogs on a hill"]
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut", "conv", "time_emb_proj", "proj_in", "ff.net.2")
"""Of all kinds that the published files change, convolutions too."""


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def denoiser_of(name, folder, **sampler):
    config = tiny(name, folder)
    settings = config.sampler.model_copy(update=sampler)
    return make_denoiser(load_pipeline(config.model), settings, config.model)


@torch.no_grad()
def drawn(denoiser, table, x):
    """Return images by a table's means, without noise."""
    conditioning = denoiser.encode(PROMPTS)
    for index in range(len(table)):
        step = torch.full((len(x),), index)
        x = transition(table, x, denoiser.denoise(x, step, conditioning), step)[1]
    return denoiser.decode(x).clamp(0, 1)


@torch.no_grad()
def own(pipeline, scheduler, latents, **call):
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt=PROMPTS, latents=latents, guidance_scale=0.0, output_type="pt", **call).images


def test_lightning_without_noise_is_euler_at_trailing_timesteps(tmp_path):
    denoiser = denoiser_of("sdxl-lightning-24gb", tmp_path)
    noise = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(3))
    published = diffusers.EulerDiscreteScheduler.from_config(euler().config, timestep_spacing="trailing")
    published.set_timesteps(4)
    assert published.timesteps.tolist() == denoiser.table.timesteps.tolist() == [999, 749, 499, 249]
    sigma = published.init_noise_sigma  # its latents begin at sigma times the noise, in units of the image
    start = noise * sigma / (1 + sigma**2) ** 0.5
    images = drawn(denoiser, denoiser.table.with_noise_in(()), start)
    theirs = own(denoiser.pipeline, published, noise, num_inference_steps=4)
    assert distance(images, theirs) < 1e-5
    # As it is drawn from, noise left out, and with the model's own spacing it is something else.
    assert distance(drawn(denoiser, denoiser.table, start), theirs) > 1e-3
    assert distance(images, own(denoiser.pipeline, euler(), noise, num_inference_steps=4)) > 1e-3


def test_the_noise_of_lightning_is_that_of_ancestral_euler(tmp_path):
    table = denoiser_of("sdxl-lightning-24gb", tmp_path).table
    assert table.noisy_steps().tolist() == [0, 1]
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(euler().config, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    sigma = scheduler.sigmas.double()
    for row in (0, 1):
        up = (sigma[row + 1] ** 2 * (sigma[row] ** 2 - sigma[row + 1] ** 2) / sigma[row] ** 2).sqrt()
        assert table.std[row].item() == pytest.approx((up / (1 + sigma[row + 1] ** 2).sqrt()).item(), rel=1e-4)


def test_dmd2_is_lcm_at_its_own_timesteps(tmp_path):
    denoiser = denoiser_of("sdxl-dmd2-24gb", tmp_path)
    assert denoiser.table.name == "LCM"
    assert denoiser.table.timesteps.tolist() == [999, 749, 499, 249]
    left = denoiser_of("sdxl-dmd2-24gb", tmp_path, timesteps=None)
    assert left.table.timesteps.tolist() == [999, 759, 499, 259]


def test_hyper_sd_is_tcd(tmp_path):
    denoiser = denoiser_of("sdxl-hyper-sd-24gb", tmp_path)
    assert denoiser.table.name == "TCD"
    assert len(denoiser.table) == 4
    assert denoiser.table.noisy_steps().tolist() == [0, 1, 2]
    assert torch.all(denoiser.table.std > denoiser_of("sdxl-hyper-sd-24gb", tmp_path, eta=0.3).table.std - 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_neither_is_guided_and_the_usage_says_so(name):
    config = load_config(f"configs/{name}.yaml")
    text = usage(config, "me/tuned", "StableDiffusionXLPipeline", config.model.path, "a fox")
    (lora,) = config.model.loras
    assert f'weight_name="{lora.weight_name}", revision="{lora.revision}"' in text
    assert "guidance_scale=0.0" in text
    assert ("timesteps=[999, 749, 499, 249]" in text) == (config.sampler.timesteps is not None)
    scheduler = {"tcd": "TCDScheduler", "lcm": "LCMScheduler", "ddpm": "DDPMScheduler"}[config.sampler.scheduler]
    assert f"pipe.scheduler = {scheduler}.from_config(" in text


@pytest.mark.parametrize("fuse", [True, False])
def test_a_kohya_lora_with_convolutions_among_others_in_a_folder(fuse, tmp_path):
    """As these are published: one of several files, by kohya's names, with convolutions."""
    pipeline = sdxl(euler())
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "loras").mkdir()
    file = tmp_path / "loras" / "four_steps.safetensors"
    factors = factors_for(pipeline.unet, *LAYERS, size=0.1)
    assert {factors[name].down.dim() for name in factors} == {2, 4}
    save_file(kohya(factors), file)
    save_file(kohya(factors_for(pipeline.unet, "to_q", seed=9)), tmp_path / "loras" / "eight_steps.safetensors")
    lora = LoraSettings(path=str(tmp_path / "loras"), weight_name=file.name, fuse=fuse)
    model = ModelSettings(path=str(tmp_path / "model"), loras=(lora,))
    loaded = make_denoiser(load_pipeline(model), SamplerSettings(scheduler="ddim", steps=2, guidance=0.0), model)

    plain = ModelSettings(path=str(tmp_path / "model"))
    expected, without = load_pipeline(plain), load_pipeline(plain)
    expected.load_lora_weights(file)
    x = torch.randn(2, *loaded.latent_shape, generator=torch.Generator().manual_seed(5))
    step, conditioning = torch.tensor([0, 1]), loaded.encode(PROMPTS)
    answers = []
    for pipe in (expected, without):
        with torch.no_grad():
            answers.append(make_denoiser(pipe, loaded.sampler, plain).denoise(x, step, conditioning))
    with torch.no_grad():
        found = loaded.denoise(x, step, conditioning)
    assert largest_difference(found, answers[0]) < 1e-5
    assert largest_difference(found, answers[1]) > 1e-2
