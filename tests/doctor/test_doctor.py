"""The doctor says ok of what works and names the remedy of what does not; bad input is refused before anything expensive."""

import json

import diffusers
import huggingface_hub.constants
import pytest
import torch
from click.testing import CliRunner
from tiny_pipelines import flux, schedule, stable_diffusion

from rlcm.cli import main
from rlcm.doctor import diagnose
from rlcm.doctor.first_round import duration
from rlcm.errors import RLCMError
from rlcm.training.config import load_config
from rlcm.training.trainer import Trainer

SMALL = {
    "rollout.batch_size": 4,
    "rollout.branches": 1,
    "rewards": "[jpeg_compressibility]",
    "evaluation.images": 4,
    "run.rounds": 3,
    "sampler.steps": 3,
    "sampler.guidance": 1.0,
    "prompts": "[a cat, a dog, a fox]",
    "run.tracker": "none",
}


def changes(**more):
    values = SMALL | {key.replace("__", "."): value for key, value in more.items()}
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny pipelines by what is special about them."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "lcm": stable_diffusion(diffusers.LCMScheduler(**schedule())),
        "history": stable_diffusion(diffusers.DPMSolverMultistepScheduler(**schedule())),
        "ddim": stable_diffusion(diffusers.DDIMScheduler(**schedule(clip_sample=False))),
        "flow": flux(diffusers.FlowMatchEulerDiscreteScheduler()),
    }
    for name, pipeline in made.items():
        pipeline.save_pretrained(root / name)
    (root / "defaults.yaml").write_text("")
    return root


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    """Return a function that runs a command in an empty folder, with `model.path` the folder of a tiny pipeline."""
    monkeypatch.chdir(tmp_path)

    def invoke(command, model, *options, **more):
        path = models / model if (models / model).is_dir() else model
        arguments = [command, str(models / "defaults.yaml"), *changes(model__path=path, **more), *options]
        return CliRunner().invoke(main, arguments, catch_exceptions=False)

    return invoke


def by_name(diagnosis):
    return {finding.name: finding for finding in diagnosis.findings}


def bright(images, prompts):
    return images.mean(dim=(1, 2, 3))


def test_all_is_well(run, tmp_path):
    result = run("doctor", "lcm")
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("\nok")
    for name in (
        "versions",
        "device",
        "precision",
        "scheduler replay",
        "adapter",
        "memory",
        "reward",
        "ratio",
        "gradients",
        "speed",
    ):
        assert f"ok    {name}" in result.output
    assert not list(tmp_path.iterdir()), "the doctor writes nothing"


def test_all_is_well_with_flow_matching_as_published_and_a_window(run):
    small = {"sampler__guidance": "null", "model__height": 16, "model__width": 16}
    result = run("doctor", "flow", "--json", sampler__eta=0.5, sampler__noisy_steps="last:1", **small)
    assert result.exit_code == 0, result.output
    numbers = {finding["name"]: finding["numbers"] for finding in json.loads(result.output)["findings"]}
    assert numbers["scheduler replay"]["replay_error"] <= 1e-5
    assert numbers["scheduler replay"]["actions"] == 1


def test_what_is_found_as_json(run):
    result = run("doctor", "lcm", "--json")
    found = json.loads(result.output)
    assert found["ok"]
    assert result.exit_code == 0
    numbers = {finding["name"]: finding["numbers"] for finding in found["findings"]}
    assert numbers["scheduler replay"]["replay_error"] <= 1e-5
    assert numbers["scheduler replay"]["actions"] == 2
    assert numbers["adapter"]["layers"] == 32  # four blocks that attend to themselves and to the text: q, k, v and out each
    assert numbers["adapter"]["relative_change"] > 1e-4
    assert numbers["ratio"]["deviation"] <= 1e-5
    assert numbers["memory"]["need_bytes"] < numbers["memory"]["there_bytes"]
    speed = numbers["speed"]
    # Three rounds of four images, and two evaluations (before and after) of four: the same sampling, without learning. In each, 32
    # more are drawn for diversity and 32 twice for the KL divergence.
    expected = 3 * speed["seconds_a_round"] + 2 * (4 + 3 * 32) / speed["sampled_per_second"]
    assert speed["seconds_in_all"] == pytest.approx(expected)
    assert 4 / speed["images_per_second"] == pytest.approx(speed["seconds_a_round"])


def test_weights_and_global_randomness_are_left_alone():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    assert diagnose(load_config(None, changes()), model=pipeline, rewards=[bright]).ok
    after = {name.replace(".base_layer", ""): p for name, p in pipeline.unet.named_parameters() if "lora_" not in name}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_big_run_is_judged_by_a_few_of_its_images():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    asked = []

    def counting(images, prompts):
        asked.append(len(images))
        return images.mean(dim=(1, 2, 3))

    config = load_config(None, [*changes(), "rollout.batch_size=480", "rollout.images_per_prompt=6", "algorithm.minibatches=5"])
    found = by_name(diagnose(config, model=pipeline, rewards=[counting]))
    assert sum(asked) == 24  # four whole groups of six
    speed = found["speed"].numbers
    assert speed["seconds_a_round"] == pytest.approx(480 / speed["images_per_second"])


def test_a_constant_reward_has_nothing_to_teach():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    diagnosis = diagnose(load_config(None, changes()), model=pipeline, rewards=[lambda images, prompts: [1.0] * len(images)])
    assert not diagnosis.ok
    assert "have the same reward" in diagnosis.verdict()


def test_a_reward_that_is_not_finite_is_named():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    diagnosis = diagnose(
        load_config(None, changes()), model=pipeline, rewards=[lambda images, prompts: [float("nan")] * len(images)]
    )
    assert not by_name(diagnosis)["reward"].ok
    assert "nan" in diagnosis.verdict().lower()


def test_dropout_in_the_network_is_caught_by_the_ratio():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    pipeline.unet.conv_out = torch.nn.Sequential(pipeline.unet.conv_out, AlwaysDropout())
    diagnosis = diagnose(load_config(None, changes()), model=pipeline, rewards=[bright])
    assert not diagnosis.ok
    assert "ratio of new to old policy is off 1" in diagnosis.verdict()


class AlwaysDropout(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.3, training=True)


def test_a_target_that_binds_nothing_beside_one_that_does():
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    config = load_config(None, [*changes(), "lora.target_modules=[to_q, to_w]"])
    diagnosis = diagnose(config, model=pipeline, rewards=[bright])
    assert not by_name(diagnosis)["adapter"].ok
    assert "to_w matches no layer of UNet2DConditionModel" in diagnosis.verdict()
    assert "reward" not in by_name(diagnosis), "nothing is sampled before it is mended"


def test_too_little_memory_is_said_before_sampling(monkeypatch):
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    monkeypatch.setattr("rlcm.doctor.machine.available_memory", lambda device: 1000)
    diagnosis = diagnose(load_config(None, changes()), model=pipeline, rewards=[bright])
    assert not by_name(diagnosis)["memory"].ok
    assert "rollout.sample_batch_size" in diagnosis.verdict()
    assert "reward" not in by_name(diagnosis)


def test_a_precision_the_processor_emulates_is_refused_before_anything_is_loaded(run, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    result = run("doctor", "lcm", model__precision="bf16", model__device="cpu")
    assert result.exit_code == 1
    assert "use model.precision=fp32 or auto" in result.output
    assert "adapter" not in result.output


def test_a_scheduler_that_steps_differently_is_caught(monkeypatch):
    pipeline = stable_diffusion(diffusers.LCMScheduler(**schedule()))
    genuine = diffusers.LCMScheduler.step

    def drifted(self, *args, **kwargs):
        return (genuine(self, *args, **kwargs)[0] * 1.001,)

    monkeypatch.setattr(diffusers.LCMScheduler, "step", drifted)
    diagnosis = diagnose(load_config(None, changes()), model=pipeline, rewards=[bright])
    assert by_name(diagnosis)["sampler"].ok is False
    assert "accepted 1e-05" in diagnosis.verdict()


BAD = {
    "a scheduler with history": ("history", {}, "its step needs earlier model outputs"),
    "one step": ("lcm", {"sampler__steps": 1}, "Use more steps (sampler.steps=2 or more)"),
    "an eta of 0": ("ddim", {"sampler__eta": 0}, "use 0 < eta <= 1"),
    "an eta of 0 of flow matching": ("flow", {"sampler__guidance": "null", "sampler__eta": 0}, "Use 0 < sampler.eta <= 1"),
    "a window without a noisy step": (
        "lcm",
        {"sampler__noisy_steps": "[2]"},
        "Use steps that do, such as sampler.noisy_steps=",
    ),
    "a window beyond the steps": (
        "lcm",
        {"sampler__noisy_steps": "[0, 3]"},
        "there is no step 3; the 3 steps of LCM are 0 .. 2",
    ),
    "targets that bind nothing": ("lcm", {"lora__target_modules": "[to_w]"}, "lora.target_modules=['to_w'] matches no layer"),
    "a Hub id without network": ("nobody/nothing", {}, "cannot be had from the Hugging Face Hub"),
    "a folder that is not there": ("./nowhere", {}, "is neither a folder nor a Hub id"),
    "a sampler of another family": ("lcm", {"sampler__scheduler": "scm"}, "does not fit StableDiffusionPipeline"),
    "a misspelt reward": ("lcm", {"rewards": "[jpeg_compressability]"}, "did you mean jpeg_compressibility?"),
}


@pytest.fixture
def never_sampling(monkeypatch):
    """Let no image be sampled and no network be asked."""

    def refuse(*args, **kwargs):
        raise AssertionError("sampling had begun")

    monkeypatch.setattr("rlcm.training.learner.rollout", refuse)
    monkeypatch.setattr("rlcm.training.evaluate.sample_latents", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("never_sampling")
def test_bad_input_is_refused_before_anything_expensive(run, tmp_path, case):
    model, more, expected = BAD[case]
    trained = run("train", model, **more)
    assert trained.exit_code == 2, "a UsageError"
    examined = run("doctor", model, **more)
    assert examined.exit_code == 1
    for output in (trained.output, examined.output):
        assert expected in " ".join(output.split())
        assert "Traceback" not in output
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_what_the_doctor_passes_the_trainer_takes(run, models, tmp_path):
    assert run("doctor", "ddim", sampler__steps=4, sampler__guidance=2.0).exit_code == 0
    config = load_config(None, changes(model__path=models / "ddim", sampler__steps=4, sampler__guidance=2.0, name="same"))
    trainer = Trainer(config)
    assert trainer.round()["ratio_deviation_max"] <= 1e-5


def test_durations():
    assert [duration(seconds) for seconds in (59.6, 600, 7200)] == ["60 s", "10 min", "2.0 h"]


def test_errors_of_the_configuration_file_are_not_findings(run):
    result = run("doctor", "lcm", optimizer__lrr=1)
    assert result.exit_code == 2
    assert "did you mean optimizer.lr?" in result.output
    with pytest.raises(RLCMError):
        load_config(None, ["optimizer.lrr=1"])
