"""The exported LoRA: plain diffusers draws with it what the tuned policy draws, at its full strength."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors import safe_open
from tiny_pipelines import flux, generators, schedule, sdxl
from tiny_runs import PROMPTS, largest_difference, lcm_pipeline, stir, tiny_config, tiny_policy

from rlcm.pipelines import LoraSettings, load_pipeline, make_denoiser
from rlcm.policy.adapter import save_lora
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.policy.rollout import decode_images, sample_latents
from rlcm.runs.rundir import RunDirectory
from rlcm.sharing import tuned_pipeline
from rlcm.training.final import WEIGHTS_NAME, model_card, save_final
from rlcm.tuning.drawing import draw_images

SEED = 100


def plain_images(folder, lora=None, **call):
    """Return what diffusers alone draws for the prompts, the image's seed as in `draw_images`."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    seeds = [torch.Generator().manual_seed(SEED) for _ in PROMPTS]
    return pipeline(PROMPTS, num_inference_steps=3, generator=seeds, output_type="pt", **call).images


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A pipeline on disk, a policy over it with a changed adapter (alpha is not the rank), and its run."""
    folder = tmp_path_factory.mktemp("model")
    lcm_pipeline().save_pretrained(folder)
    config = tiny_config(tmp_path_factory.mktemp("runs"), model={"path": str(folder)}, lora={"rank": 4, "alpha": 10})
    denoiser = make_denoiser(load_pipeline(config.model), config.sampler, config.model)
    policy = stir(Policy(denoiser, config.lora), size=0.15)
    run = RunDirectory.create(tmp_path_factory.mktemp("runs"), "run")
    final = save_final(policy, config, [], run)
    return SimpleNamespace(folder=folder, config=config, policy=policy, run=run, final=final)


def test_plain_diffusers_draws_the_tuned_images(tuned):
    config = tuned.config
    found = plain_images(tuned.folder, tuned.final, guidance_scale=3.0)
    drawn = draw_images(tuned_pipeline(config, tuned.run.path), config.model, config.sampler, PROMPTS, SEED, 1)
    own = sample_latents(tuned.policy.denoiser, tuned.policy.table, tuned.policy.denoiser.encode(PROMPTS), [SEED] * 3)
    assert largest_difference(found, drawn) < 1e-4
    assert largest_difference(found, decode_images(tuned.policy.denoiser, own)) < 1e-4
    untuned = plain_images(tuned.folder, guidance_scale=3.0)
    assert largest_difference(untuned, drawn) > 1e-2
    assert (
        largest_difference(untuned, draw_images(tuned_pipeline(config, None), config.model, config.sampler, PROMPTS, SEED, 1))
        < 1e-5
    )


def test_a_halved_alpha_would_be_seen(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned.policy, "settings", AdapterSettings(rank=4, alpha=5))
    save_lora(tuned.policy, tmp_path / WEIGHTS_NAME)
    right = plain_images(tuned.folder, tuned.final, guidance_scale=3.0)
    assert largest_difference(plain_images(tuned.folder, tmp_path, guidance_scale=3.0), right) > 1e-3


def test_images_of_one_prompt_differ_by_their_seed(tuned):
    config = tuned.config
    pipeline = tuned_pipeline(config, None)
    images = draw_images(pipeline, config.model, config.sampler, PROMPTS[:2], SEED, 3)
    assert images.shape == (6, 3, 16, 16)
    expected = pipeline(
        PROMPTS[1],
        guidance_scale=3.0,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(SEED + 2),
        output_type="pt",
    ).images
    assert largest_difference(images[5:], expected) < 1e-5


def test_the_average_is_what_is_saved(tmp_path):
    policy = stir(tiny_policy(ema_decay=0.5))
    run = RunDirectory.create(tmp_path, "run")
    final = save_final(policy, tiny_config(tmp_path), [], run)
    with safe_open(final / WEIGHTS_NAME, "pt") as file:
        ups = [file.get_tensor(name) for name in file.keys() if ".lora_B." in name]  # noqa: SIM118 (not a dict)
    assert len(ups) == len(policy.parameters) // 2
    assert not any(up.any() for up in ups)  # the average has not followed yet
    assert all(p.any() for p in policy.parameters)


def families():
    yield "sdxl", sdxl(diffusers.LCMScheduler(**schedule(clip_sample=False))), {"guidance": 1.0, "steps": 3}
    yield "flux", flux(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)), {"steps": 3}


def test_networks_of_other_families_come_out_too(tmp_path):
    for name, pipeline, sampler in families():
        pipeline.save_pretrained(tmp_path / name)
        config = tiny_config(tmp_path, model={"path": str(tmp_path / name)}, sampler={"guidance": None, **sampler})
        policy = stir(Policy(make_denoiser(pipeline, config.sampler, config.model), config.lora), size=0.3)
        save_lora(policy, tmp_path / name / "lora.safetensors")
        step = torch.tensor([0, 1, 0])
        conditioning = policy.denoiser.encode(PROMPTS)
        x = torch.stack([torch.randn(policy.denoiser.latent_shape, generator=g) for g in generators(3)])
        with torch.no_grad():
            wanted = policy.denoiser.denoise(x, step, conditioning)
            base = load_pipeline(config.model)
            before = make_denoiser(base, config.sampler, config.model).denoise(x, step, conditioning)
            base.load_lora_weights(tmp_path / name / "lora.safetensors")
            found = make_denoiser(base, config.sampler, config.model).denoise(x, step, conditioning)
        assert largest_difference(before, wanted) > 1e-2
        assert largest_difference(found, wanted) < 1e-4


def test_the_model_card_says_what_was_done(tmp_path):
    config = tiny_config(tmp_path, model={"path": "some/model"})
    before = {"round": 0, "images": 4, "reward": {"mean": 0.25, "ci95": 0.01}, "rewards": {}, "judge": None, "steps": 3}
    card = model_card(config, [before, before | {"round": 2, "reward": {"mean": 0.75, "ci95": 0.02}}])
    assert card.startswith("---\n")
    assert "some/model" in card
    assert "0.25" in card
    assert "0.75" in card
    assert "## Use" not in card
    assert '```python\npipe = "tuned"\n```' in model_card(config, [before], 'pipe = "tuned"')
    assert "Trained for 2 rounds of" in card
    added = config.model.model_copy(update={"loras": (LoraSettings(path="some/lcm-lora", scale=0.5),)})
    assert "a LoRA in it: `some/lcm-lora` (scale 0.5)" in model_card(config.model_copy(update={"model": added}), [])
