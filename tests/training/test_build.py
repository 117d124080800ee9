"""From a configuration to objects: checks before a model is loaded, notes, and the names of rewards."""

import pytest
import torch
from tiny_runs import PROMPTS, brightness, lcm_pipeline, tiny_config

from rlcm.errors import ConfigError, MissingFileError, RLCMError
from rlcm.policy.rollout import RolloutSettings
from rlcm.rewards.given import mix_of
from rlcm.training import build as module
from rlcm.training.build import build, checked, features_of, judge_of
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.training.fitting import sampled_at_once


def test_parts_of_a_run(tmp_path):
    config = tiny_config(tmp_path, prompts=PROMPTS, rewards=["brightness"], evaluation={"prompts": ["a bee", "an ant"]})
    parts = build(config, pipeline=lcm_pipeline())
    assert parts.prompts.prompts == tuple(PROMPTS)
    assert len(parts.conditioning) == 3
    assert parts.evaluator.prompts == ["a bee", "an ant"] * 2
    assert [part.label for part in parts.rewards.parts] == ["brightness"]
    assert any(note.startswith("memory estimate") for note in parts.notes)
    assert parts.evaluator.judge is None


def test_features_in_which_diversity_is_measured(tmp_path):
    """The built-in model's own, else those of the first CLIP among the rewards, else none."""
    images = torch.rand(2, 3, 16, 20)
    own = features_of(judge_of(tiny_config(tmp_path, model={"path": "builtin"})), mix_of(["brightness"]))
    assert list(own) == ["judge", "clip"]
    of_others = features_of(None, mix_of(["brightness"]), mix_of(["sharpness", "alignment"]))
    assert list(of_others) == ["clip"]
    for seen in (*own.values(), *of_others.values()):
        torch.testing.assert_close(seen(images).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(own["clip"](images), of_others["clip"](images))

    class Mine:
        clip_features = "not ours"

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3))

    assert features_of(None, mix_of([Mine()]), None) == {}


def test_prompts_that_are_too_long_are_noted_once(tmp_path):
    long = "cat dog fox bee " * 8
    parts = build(tiny_config(tmp_path), pipeline=lcm_pipeline(), rewards=[brightness], prompts=[long, "a cat", long])
    notes = [note for note in parts.notes if "is longer than the model reads" in note]
    assert len(notes) == 1
    assert long in notes[0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"prompts": "nowhere.txt"}, MissingFileError),
        ({"rewards": ["nowhere"]}, ConfigError),
        ({"evaluation": {"prompts": "nowhere.txt"}}, MissingFileError),
    ],
)
def test_what_is_cheap_is_checked_before_the_model_is_loaded(tmp_path, monkeypatch, changes, error):
    def load(settings):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(module, "load_pipeline", load)
    with pytest.raises(error):
        build(tiny_config(tmp_path, **changes))


BUILT_IN_MODEL = {"model": {"path": "builtin"}, "sampler": {"steps": 2}}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"evaluation": {"best": "guard.diversity"}}, r"no such figure; it may be reward, kl, .*guard\.diversity_judge"),
        ({"evaluation": {"best": "-kl", "images": 4, "diversity_images": 0}}, "no such figure"),
        (
            {
                "evaluation": {"best": "guard.diversity_judge", "images": 2, "diversity_images": 1},
                "prompts": ["a fox", "a dog"],
            },
            "no such figure",
        ),
        ({"model": {"path": "builtin", "loras": ["nowhere.safetensors"]}}, r"model\.loras\.0\.path=.*is neither a file"),
    ],
    ids=["diversity in pixels", "a divergence that is not measured", "diversity of one picture a prompt", "a LoRA"],
)
def test_what_the_built_in_model_will_not_have_is_told_before_it_is_loaded(tmp_path, changes, text):
    config = parse_settings(TrainConfig, {**BUILT_IN_MODEL, "rewards": ["brightness"], "output": str(tmp_path), **changes})
    with pytest.raises(RLCMError, match=text):
        checked(config)


def test_figures_that_the_built_in_model_has_are_taken(tmp_path):
    for best in ("guard.diversity_judge", "guard.vendi_clip", "-kl", "judge.right"):
        values = {**BUILT_IN_MODEL, "rewards": ["brightness"], "output": str(tmp_path), "evaluation": {"best": best}}
        checked(parse_settings(TrainConfig, values))


def test_a_model_without_what_the_adapter_wants(tmp_path):
    with pytest.raises(RLCMError, match=r"lora\.target_modules"):
        build(tiny_config(tmp_path, lora={"target_modules": ["none"]}), pipeline=lcm_pipeline(), rewards=[brightness])


def test_rewards_are_named_after_their_functions():
    class Sharp:
        def __call__(self, images, prompts):
            return images.std((1, 2, 3))

    mix = mix_of([brightness, Sharp(), brightness, lambda images, prompts: torch.ones(len(prompts))])
    assert [part.label for part in mix.parts] == ["brightness", "Sharp", "brightness-2", "<lambda>"]
    images = torch.rand(2, 3, 4, 4)
    expected = 2 * brightness(images, []) + images.std((1, 2, 3)) + 1
    torch.testing.assert_close(mix(images, ["a", "b"]).total, expected)


def test_images_sampled_at_once():
    assert sampled_at_once(RolloutSettings(batch_size=8, sample_batch_size=64)) == 8
    assert sampled_at_once(RolloutSettings(batch_size=80, sample_batch_size=64)) == 64


def test_a_run_that_goes_on_needs_its_own_folder_alone(tmp_path, monkeypatch):
    (tmp_path / "runs/run").mkdir(parents=True)
    monkeypatch.setattr("rlcm.training.build.os.access", lambda place, mode: str(place).endswith("run"))
    checked(tiny_config(tmp_path / "runs"))
    with pytest.raises(ConfigError, match="nothing can be written into"):
        checked(tiny_config(tmp_path / "runs", name="other"))
