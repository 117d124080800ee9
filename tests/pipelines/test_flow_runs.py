"""The flow-matching models from disk to disk: previewed, loaded, trained, exported, and read back by their pipelines."""

import itertools

import diffusers
import pytest
import torch
from exported_runs import comfyui_transformer_map, finished_run, images, patched
from safetensors.torch import load_file, save_file
from tiny_flow import ernie, euler, klein, krea, qwen_image, sd3, stochastic, z_image
from tiny_pipelines import distance, flux
from tiny_runs import largest_difference, tiny_config

from rlcm.errors import ConfigError
from rlcm.pipelines import (
    ModelSettings,
    SamplerSettings,
    estimate,
    load_pipeline,
    make_denoiser,
    preview_table,
    truncated_prompts,
)
from rlcm.pipelines.quantisation import PACKAGES
from rlcm.sharing.formats import AVAILABLE, export_run
from rlcm.training.config import load_config
from rlcm.training.trainer import Trainer
from rlcm.training.usage import usage

MODELS = {
    "z_image": (z_image, {"guidance": 0.0}),
    "klein": (klein, {"guidance": None}),
    "sd3": (sd3, {"guidance": 1.0}),
    "qwen_image": (qwen_image, {"guidance": None}),
    "krea": (krea, {"guidance": 0.0}),
    "ernie": (ernie, {"guidance": 1.0}),
}
SIZE = {"height": 16, "width": 16}


class Brightness:
    """The mean of every picture, with its gradient."""

    differentiable = True

    def __call__(self, pictures, prompts):
        return pictures.mean((1, 2, 3))


@pytest.fixture(scope="module", params=MODELS)
def run(request, tmp_path_factory):
    """A finished run of each model, with a LoRA that changes the pictures."""
    make, sampler = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return finished_run(folder, lambda: make(stochastic(shift=3.0)), sampler, 4, 8, 0.3, model=SIZE)


def test_the_result_is_read_back_by_the_pipelines_own_loader(run, tmp_path):
    assert largest_difference(run.base, run.tuned) > 2e-2
    file = export_run(run.path, "diffusers")
    pipeline = run.fresh()
    pipeline.load_lora_weights(file)
    assert largest_difference(images(pipeline, run.config.sampler.guidance), run.tuned) < 1e-4

    save_file(
        {key: value / 2 if "lora_B" in key else value for key, value in load_file(file).items()}, tmp_path / "half.safetensors"
    )
    halved = run.fresh()
    halved.load_lora_weights(tmp_path / "half.safetensors")
    assert largest_difference(images(halved, run.config.sampler.guidance), run.tuned) > 1e-3

    merged = diffusers.DiffusionPipeline.from_pretrained(export_run(run.path, "merged"))
    assert largest_difference(images(merged, run.config.sampler.guidance), run.tuned) < 1e-4
    if "comfyui" in AVAILABLE[type(pipeline).__name__]:
        again = run.fresh()
        patched(again.transformer, load_file(export_run(run.path, "comfyui")), comfyui_transformer_map(again))
        assert largest_difference(images(again, run.config.sampler.guidance), run.tuned) < 1e-4


def test_the_usage_of_the_result_runs_as_it_stands(run):
    """The Python of the model card, without its first lines, which load."""
    kind = type(run.pipeline).__name__
    text = usage(run.config, "final", kind, run.model, "a red cat")
    call = next(line for line in text.splitlines() if line.startswith("pipe("))
    pipe = run.fresh()
    drawn = []
    pipe.image_processor.postprocess = lambda image, **_: drawn.append(image) or [type("", (), {"save": lambda *_: None})()]
    exec(call, {"pipe": pipe})
    assert drawn[0].shape == (1, 3, 16, 16)
    assert len(pipe.scheduler.timesteps) == 3
    table = make_denoiser(run.fresh(), run.config.sampler, run.config.model).table
    assert torch.allclose(pipe.scheduler.timesteps.float(), table.timesteps, atol=1e-3)


@pytest.mark.parametrize("name", ["krea", "klein"])
def test_the_usage_says_the_guidance_that_was_left_open(name, tmp_path):
    """Krea 2's pipeline would take 4.5 for a distilled model, too, and draw something else."""
    make, _ = MODELS[name]
    make(stochastic(shift=3.0)).save_pretrained(tmp_path / "model")
    config = tiny_config(
        tmp_path,
        model={"path": str(tmp_path / "model"), **SIZE},
        sampler={"steps": 3, "guidance": None},
        prompts=["a cat", "a dog"],
        run={"rounds": 1},
        evaluation={"images": 2},
    )
    reward = [lambda pictures, prompts: pictures.mean((1, 2, 3))]
    run = Trainer(config, rewards=reward).train()
    own = {"krea": 0.0, "klein": 1.0}[name]
    assert load_config(run / "config.yaml").sampler.guidance == own
    assert f"guidance_scale={own}" in (run / "final" / "README.md").read_text()
    assert Trainer.resume(run, rewards=reward, changes=["run.rounds=2"]).config.sampler.guidance == own
    passed = Trainer(config, model=make(stochastic(shift=3.0)), rewards=reward)
    assert passed.config.sampler.guidance == own

    without_noise = passed.config.model_copy(update={"sampler": passed.config.sampler.model_copy(update={"eta": 0.0})})
    denoiser = make_denoiser(make(stochastic(shift=3.0)), without_noise.sampler, ModelSettings(**SIZE))
    noise = torch.randn(1, *denoiser.latent_shape, generator=torch.Generator().manual_seed(1))
    images = euler(denoiser, denoiser.encode(["a red cat"]), noise)
    kind = type(denoiser.pipeline).__name__
    call = usage(without_noise, "final", kind, None, "a red cat").splitlines()[-1]
    assert distance(drawn_by(make, call, noise, denoiser), images) < 1e-5
    if name == "krea":
        other = call.replace(f"guidance_scale={own}", "guidance_scale=4.5")
        assert distance(drawn_by(make, other, noise, denoiser), images) > 1e-3
        assert distance(drawn_by(make, call.replace(f", guidance_scale={own}", ""), noise, denoiser), images) > 1e-3


def drawn_by(make, call, noise, denoiser):
    """Return the image that a call of the model card draws from this noise, without noise between its steps."""
    pipe = make(stochastic(shift=3.0, stochastic_sampling=False))
    if type(pipe).__name__ == "Flux2KleinPipeline":  # which packs even the latents that it is given
        noise = noise.transpose(1, 2).reshape(len(noise), -1, *denoiser.patches())
    call = call.removesuffix('.images[0].save("picture.png")')
    return eval(call.removesuffix(")") + ', latents=noise, output_type="pt").images', {"pipe": pipe, "noise": noise.clone()})


def test_the_preview_is_of_the_same_kind_as_the_table_of_the_loaded_model(run):
    preview = preview_table(run.config.model, run.config.sampler)
    loaded = make_denoiser(run.fresh(), run.config.sampler, run.config.model).table
    assert preview.name == loaded.name == "FlowMatchEulerDiscrete"
    # With a fixed shift they are the same to the bit: only a shift that grows with the image is that of another size.
    assert torch.equal(preview.timesteps, loaded.timesteps)
    assert torch.equal(preview.std, loaded.std)


def test_a_run_of_it_learns(run, tmp_path):
    config = tiny_config(
        tmp_path,
        model={"path": run.model, **SIZE},
        sampler={**run.config.sampler.model_dump(), "steps": 3},
        prompts=["a cat", "a dog"],
    )
    trainer = Trainer(config, rewards=[lambda pictures, prompts: pictures.mean((1, 2, 3))])
    before = [p.detach().clone() for p in trainer.parts.policy.parameters]
    for number in range(3):
        metrics = trainer.round()
        assert metrics["grad_norm"] > 0
        assert metrics["skipped_updates"] == 0
        if number == 0:
            assert metrics["ratio_deviation_max"] == metrics["clip_fraction"] == 0
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.parts.policy.parameters, strict=True))


def test_the_loss_of_a_run_of_it_falls(run, tmp_path):
    """The loss is minus the reward, on fixed noise after every round; by the reward's own gradient, which no estimate makes noisy."""
    config = tiny_config(
        tmp_path,
        model={"path": run.model, **SIZE},
        sampler={**run.config.sampler.model_dump(), "steps": 3},
        algorithm={"loss": "reward_backprop"},
        optimizer={"lr": 2e-2},
        rollout={"batch_size": 12},
        evaluation={"every": 1, "images": 12},
        run={"rounds": 3},
        prompts=["a cat", "a dog"],
    )
    trainer = Trainer(config, rewards=[Brightness()])
    trainer.train()
    losses = [-look["reward"]["mean"] for look in trainer.evaluations]
    assert len(losses) == 4
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


@pytest.mark.parametrize("name", MODELS)
def test_an_8_bit_base_says_nearly_the_same(name, tmp_path):
    pytest.importorskip(PACKAGES["int8"])
    make, sampler = MODELS[name]
    make(stochastic(shift=3.0)).save_pretrained(tmp_path)
    settings = SamplerSettings(steps=2, **sampler)
    answers = []
    for kind in ("none", "int8"):
        model = ModelSettings(path=str(tmp_path), quantisation=kind, **SIZE)
        denoiser = make_denoiser(load_pipeline(model), settings, model)
        x = torch.randn(1, *denoiser.latent_shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            answers.append(denoiser.denoise(x, torch.zeros(1, dtype=torch.long), denoiser.encode(["a red cat"])))
    error = (answers[1] - answers[0]).norm() / answers[0].norm()
    assert 0 < error < 0.05


def test_few_steps_and_guidance_are_refused_before_weights_are_read(tmp_path):
    model = {
        "base": klein(stochastic(), is_distilled=False),
        "distilled": krea(stochastic()),
        "schnell": flux(stochastic(), guidance_embeds=False),
    }
    for name, pipeline in model.items():
        pipeline.save_pretrained(tmp_path / name)
        for file in (tmp_path / name / "transformer").glob("*.safetensors"):
            file.write_bytes(b"not read")
    with pytest.raises(ConfigError, match=r"sampler.steps=4: .*base is a base model"):
        preview_table(ModelSettings(path=str(tmp_path / "base")), SamplerSettings(steps=4))
    with pytest.raises(ConfigError, match=r"sampler.guidance=4.5: .*distilled is distilled"):
        preview_table(ModelSettings(path=str(tmp_path / "distilled")), SamplerSettings(steps=4, guidance=4.5))
    with pytest.raises(ConfigError, match=r"sampler.guidance=3.5: .*schnell was distilled without guidance"):
        preview_table(ModelSettings(path=str(tmp_path / "schnell")), SamplerSettings(steps=4, guidance=3.5))
    for name in ("distilled", "schnell"):
        assert len(preview_table(ModelSettings(path=str(tmp_path / name)), SamplerSettings(steps=4))) == 4


@pytest.mark.parametrize(
    ("name", "letters"), [("z_image", 509), ("klein", 509), ("sd3", 255), ("krea", 390), ("qwen_image", 360)]
)
def test_prompts_longer_than_the_model_reads(name, letters):
    pipeline = MODELS[name][0](stochastic())
    long = "cat " * 400
    ((prompt, kept),) = truncated_prompts(pipeline, ["short", long])
    assert prompt == long
    assert long.startswith(kept)
    # A token a letter, and those of the template around it.
    assert letters - 15 < len(kept.replace(" ", "")) <= letters
    assert truncated_prompts(pipeline, ["cat " * 50]) == []


@pytest.mark.parametrize("name", MODELS)
def test_there_is_an_estimate_for_it(name):
    make, sampler = MODELS[name]
    found = estimate(
        make_denoiser(make(stochastic()), SamplerSettings(steps=2, **sampler), ModelSettings(**SIZE)), 2, 1, training=True
    )
    assert found.learning > found.sampling / 4 > 0
    assert found.decode > 0
    assert found.encoding > 0
