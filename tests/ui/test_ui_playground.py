"""The playground's pictures: those of the base model and of `rlcm sample`, bit for bit, and what is kept with them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from compared_runs import write_run
from PIL import Image

from rlcm.cli import commands as cli
from rlcm.errors import ConfigError, MissingFileError
from rlcm.pipelines import load_pipeline
from rlcm.rewards import RewardSettings
from rlcm.runs.digests import of_file
from rlcm.sharing import tuned_pipeline
from rlcm.training.config import load_config
from rlcm.ui.playground import Studio, Studios, standing


@pytest.fixture(scope="module")
def studio(runs):
    return Studio(load_config(runs / "first" / "config.yaml"), runs / "first")


def pixels(drawn):
    return np.asarray(drawn.picture)


def sampled(model, *more, folder):
    folder = folder / f"of-{Path(model).name}"
    found = CliRunner().invoke(cli.main, ["sample", str(model), "--prompt", "a red cat", *more, "-o", str(folder)])
    assert found.exit_code == 0, found.output
    (file,) = folder.glob("*.png")
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("steps", [1, 4])
def test_strength_one_is_what_sample_draws_and_zero_the_base_model(studio, runs, tiny_model, tmp_path, steps):
    more = ["--seed", "5", "--steps", str(steps)]
    tuned = sampled(runs / "first", *more, folder=tmp_path)
    base = sampled(tiny_model, *more, "--guidance", "3.0", folder=tmp_path)
    assert (base != tuned).any()
    left, right = studio.draw("a red cat", 5, steps, 1.0)
    assert (pixels(left) == base).all()
    assert (pixels(right) == tuned).all()
    left, none = studio.draw("a red cat", 5, steps, 0.0)
    assert (pixels(none) == base).all()
    assert (pixels(left) == base).all()


def test_strengths_in_between_are_those_of_a_scaled_adapter(studio, runs):
    config = load_config(runs / "first" / "config.yaml")
    weights = {"path": str(runs / "first" / "final"), "weight_name": "pytorch_lora_weights.safetensors", "scale": 1.5}
    scaled = load_pipeline(config.model.model_validate(config.model.model_dump() | {"loras": [weights]})).unet
    studio.draw("a red cat", 5, 1, 1.5)
    for (name, own), other in zip(studio.pipeline.unet.named_parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(own, other, msg=name)


@pytest.mark.parametrize(
    ("seed", "steps", "strength", "message"),
    [
        (float("nan"), 1, 1.0, "seed=nan"),
        (-1, 1, 1.0, "seed=-1: input should be greater than or equal to 0"),
        (2**70, 1, 1.0, "seed="),
        (0.5, 1, 1.0, "seed=0.5"),
        (0, 0, 1.0, "steps=0: input should be greater than or equal to 1"),
        (0, float("inf"), 1.0, "steps=inf"),
        (0, 2.5, 1.0, "steps=2.5"),
        (0, 1, float("nan"), "strength=nan: input should be a finite number"),
        (0, 1, 2.5, "strength=2.5: input should be less than or equal to 2"),
        (0, 1, -1, "strength=-1"),
    ],
)
def test_numbers_are_checked_as_on_the_command_line(studio, seed, steps, strength, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        studio.draw("a red cat", seed, steps, strength)


def test_whole_numbers_of_a_browser_are_taken(studio):
    assert studio.draw("a red cat", 2.0**53, 1.0, 2)[0].about["seed"] == 2**53


def test_the_order_of_strengths_leaves_no_trace(studio, runs):
    tuned = tuned_pipeline(load_config(runs / "first" / "config.yaml"), runs / "first").unet
    for strength in (2.0, 0.3, 1.0):
        studio.strength.set(strength)
    assert all(torch.equal(a, b) for a, b in zip(studio.pipeline.unet.parameters(), tuned.parameters(), strict=True))


def test_the_reward_is_that_of_the_picture(studio):
    left, right = studio.draw("a red cat", 1, 2, 1.0)
    assert set(left.rewards) == {"brightness"}
    assert left.rewards != right.rewards
    assert left.failure == ""


def test_a_picture_is_kept_with_what_made_it(studio):
    drawn = studio.draw("ein roter Käfer", 7, 2, 0.5)[1]
    with Image.open(io.BytesIO(drawn.png())) as kept:
        about = dict(kept.text)
        assert (np.asarray(kept) == pixels(drawn)).all()
    assert about["prompt"] == "ein roter Käfer"
    assert (about["seed"], about["steps"], about["strength"], about["run"]) == ("7", "2", "0.5", "first")
    assert json.loads(about["reward"]) == drawn.rewards
    assert about["software"].startswith("rlcm ")
    assert drawn.uri().startswith("data:image/png;base64,")


def test_a_reward_that_fails_costs_no_picture(runs):
    studio = Studio(load_config(runs / "first" / "config.yaml"), runs / "first")

    def broken(images, prompts):
        raise ValueError("out of order")

    studio.draw("a red cat", 1, 1, 1.0)
    studio.rewards.parts[0] = studio.rewards.parts[0]._replace(reward=broken)
    left, right = studio.draw("a red cat", 1, 1, 1.0)
    assert (left.rewards, right.rewards) == ({}, {})
    assert "out of order" in left.failure


def test_a_reward_that_only_its_script_has_costs_no_picture(runs):
    config = load_config(runs / "first" / "config.yaml")
    rewards = [RewardSettings(name="__main__:mine", label="mine")]
    studio = Studio(config.model_copy(update={"rewards": rewards}), runs / "first")
    left, right = studio.draw("a red cat", 1, 1, 1.0)
    assert (pixels(left) != pixels(right)).any()
    assert (left.rewards, right.rewards) == ({}, {})
    assert "__main__" in right.failure


def test_the_judge_of_the_built_in_model_says_whether_it_is_right_where_it_can_know():
    studio = Studio(load_config(None, ["rewards=[composition]"]), None)
    (drawn,) = studio.draw("three foxes", 1, 1)
    ((question, right),) = drawn.verdicts
    assert (question, type(right)) == ("right", bool)
    assert drawn.rewards["composition"] in (0, 1)
    (drawn,) = studio.draw("a camel at dawn", 1, 1)
    assert drawn.verdicts == []
    assert "asks for nothing that the built-in detector knows" in drawn.failure


def test_a_penalty_is_told_as_people_read_it(runs):
    config = load_config(runs / "first" / "config.yaml")
    rewards = [RewardSettings(name="jpeg_compressibility", weight=-1.0)]
    studio = Studio(config.model_copy(update={"rewards": rewards}), runs / "first")
    drawn = studio.draw("a red cat", 1, 1, 1.0)[1]
    (value,) = drawn.rewards.values()
    assert value < 0, "minus the size of the file"
    assert studio.metric.shown(value) == -value
    assert (studio.metric.unit, studio.metric.lower_is_better) == ("kB", False)


def test_models_are_kept_until_their_weights_change(runs, monkeypatch):
    studios = Studios()
    assert studios.prepare(runs / "first") == 3
    first = studios._studio(runs / "first")
    assert studios._studio(runs / "first") is first
    weights = runs / "first" / "final" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert studios._studio(runs / "first") is not first
    studios._studio(runs / "second")
    assert len(studios._kept) == 2


def test_a_run_without_result_says_what_to_do(runs, tmp_path):
    (tmp_path / "config.yaml").write_text((runs / "first" / "config.yaml").read_text())
    with pytest.raises(MissingFileError, match="rlcm train --resume"):
        Studios().prepare(tmp_path)


def test_where_a_strength_stands(tmp_path):
    run = write_run(tmp_path, "run", [(0, 0, -3.0), (10, 10, -2.0)])
    assert standing(run, 1.0) == ""
    weights = run / "final" / "pytorch_lora_weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    entries = [
        {"strength": s, "reward": {"mean": r}, "rewards": {"jpeg": {"mean": r}}, "guard": {"diversity_judge": d}}
        for s, r, d in ((0.0, -3.0, 0.2), (0.5, -2.5, 0.15), (1.0, -2.0, 0.1))
    ]
    (run / "strengths.json").write_text(json.dumps({"weights": of_file(weights), "strengths": entries}))
    said = standing(run, 0.7).replace("\N{NO-BREAK SPACE}", " ")
    assert said == "Measured at strength 0.5: JPEG size 2.50 kB, 3.00 kB at 0; 75% of the base model's diversity."
    assert standing(run, 1.8).startswith("Measured at strength 1: JPEG size 2.00")
    weights.write_bytes(b"others")
    assert standing(run, 1.0) == ""
