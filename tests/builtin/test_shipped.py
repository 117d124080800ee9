"""The built-in model as shipped: loadable by plain diffusers, the same pictures either way, and right as often as it should be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline

from rlcm.builtin import DEMO, PARTS, WEIGHTS, configuration, is_part, model_path
from rlcm.builtin.detector import JudgeDetector, RewardDetector
from rlcm.builtin.judging import PromptJudge, by_kind, right
from rlcm.builtin.renderer import DEFAULT_FONT
from rlcm.builtin.vocabulary import TAGS, metadata
from rlcm.builtin.vocabulary import prompt as prompt_of
from rlcm.errors import MissingFileError
from rlcm.pipelines import load_pipeline
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.recipe.data import Pictures
from rlcm.recipe.measure import prompts_of_test
from rlcm.rewards.learned.alignment import Alignment
from rlcm.training.config import load_config
from rlcm.training.trainer import Trainer
from rlcm.tuning.drawing import draw_images

PROMPTS = ["three foxes", "a star left of an owl", "a red heart and a blue boat"]
OWN_SEED = 5_000_000
"""Of pictures that no part was trained on, and that the card was not measured with."""


def drawn(prompts: list[str], seed: int = 0) -> torch.Tensor:
    """Return a picture of every prompt by the student, in four steps."""
    model = ModelSettings(path="builtin")
    return draw_images(load_pipeline(model), model, SamplerSettings(steps=4, guidance=3.0), prompts, seed=seed, count=1)


def test_weights_are_safetensors_of_at_most_27_mb() -> None:
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 27e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert all(is_part(file) for file in files)
    assert not is_part(DEMO)


@pytest.mark.parametrize("steps", [1, 4])
def test_plain_diffusers_draws_what_sample_draws(steps: int) -> None:
    plain = LatentConsistencyModelPipeline.from_pretrained(model_path("student"))
    plain.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(7) for _ in PROMPTS]
    theirs = plain(PROMPTS, num_inference_steps=steps, guidance_scale=3.0, generator=generators, output_type="np").images
    model = ModelSettings(path="builtin")
    ours = draw_images(load_pipeline(model), model, SamplerSettings(steps=steps, guidance=3.0), PROMPTS, seed=7, count=1)
    assert ours.shape == (3, 3, 64, 64)
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - theirs).max() <= 1e-4


def test_plain_diffusers_draws_what_the_teacher_draws() -> None:
    plain = StableDiffusionPipeline.from_pretrained(model_path("teacher"))
    plain.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(3) for _ in PROMPTS]
    call = {"num_inference_steps": 10, "guidance_scale": 3.0, "eta": 1.0, "output_type": "np"}
    theirs = plain(PROMPTS, generator=generators, **call).images
    model = ModelSettings(path="builtin-teacher")
    sampler = SamplerSettings(scheduler="ddim", steps=10, guidance=3.0, eta=1.0)
    ours = draw_images(load_pipeline(model), model, sampler, PROMPTS, seed=3, count=1)
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - theirs).max() <= 1e-4


def test_the_student_is_right_in_about_half_of_its_pictures() -> None:
    """A small sample of what `rlcm builtin evaluate` measures on 960 pictures: there is something to learn, and to learn from."""
    asked = prompts_of_test(240, held_out=False)
    prompts = [entry["prompt"] for entry in asked]
    images = drawn(prompts)
    judged = PromptJudge()(images, prompts, asked)
    assert set(judged) == {"right", *TAGS}
    # .45 to .75, and what 240 pictures may be off by.
    assert 0.38 <= float(judged["right"].mean()) <= 0.81
    wrong = PromptJudge()(images, prompts[1:] + prompts[:1], asked[1:] + asked[:1])
    assert float(wrong["right"].mean()) <= 0.1


@pytest.mark.skipif(not DEFAULT_FONT.is_file(), reason="no emoji font")
@pytest.mark.parametrize(("kind", "part"), [(JudgeDetector, "judge"), (RewardDetector, "detector")])
def test_fresh_renders_are_judged_right(kind: type[JudgeDetector] | type[RewardDetector], part: str) -> None:
    batch = Pictures(DEFAULT_FONT, OWN_SEED, held_out=None).batch(600, 0, dict.fromkeys(TAGS, 1.0))
    asked = [metadata(one) for one in batch.asked]
    detector = kind.load(model_path(part))
    assert min(by_kind(right(detector, batch.images, asked), asked).values()) >= 0.985
    assert float(right(detector, batch.images, asked[1:] + asked[:1]).float().mean()) <= 0.1


@pytest.mark.skipif(not DEFAULT_FONT.is_file(), reason="no emoji font")
def test_clip_prefers_the_true_prompt() -> None:
    batch = Pictures(DEFAULT_FONT, OWN_SEED, held_out=False).batch(120, 1, {"single_object": 0.5, "colors": 0.5})
    prompts = [prompt_of(one) for one in batch.asked]
    score = Alignment(device="cpu")
    true, other = score(batch.images, prompts), score(batch.images, prompts[1:] + prompts[:1])
    differ = torch.tensor([a != b for a, b in zip(prompts, prompts[1:] + prompts[:1], strict=True)])
    assert float((true > other)[differ].float().mean()) >= 0.9


def test_the_card_states_the_measured_figures() -> None:
    figures = json.loads((WEIGHTS / "evaluation.json").read_text())
    card = (WEIGHTS / "README.md").read_text()
    assert figures["images_each"] >= 900
    assert f"{figures['autoencoder']['psnr_db']:.2f} dB" in card
    base = figures["student_4"]["score"]["overall"]
    assert f"{base:.3f}" in card
    assert 0.45 <= base <= 0.75
    assert min(*figures["judge_on_renders"].values(), *figures["detector_on_renders"].values()) >= 0.985


def test_an_unknown_part_is_named_with_those_there_are() -> None:
    assert all(model_path(part).exists() for part in PARTS)
    with pytest.raises(MissingFileError, match="'vae'; its parts are student, teacher, clip, detector, judge"):
        model_path("vae")


def test_configurations_by_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configuration(None) is configuration("") is None
    assert configuration("demo") == DEMO
    assert configuration("demo.yaml") == "demo.yaml"
    (tmp_path / "demo").write_text("seed: 1\n")
    assert configuration("demo") == "demo", "a file of one's own goes before the package's"


def test_what_the_packages_own_configurations_learn() -> None:
    default, demo = load_config(), load_config(DEMO)
    for config in (default, demo):
        assert (config.model.path, config.prompts) == ("builtin", "world")
        assert [reward.name for reward in config.rewards] == ["composition"]
    assert default.rewards[0].args == {}, "a reward without a gradient, as any is"
    assert default.algorithm.loss not in ("reward_backprop",)
    assert demo.rewards[0].args == {"graded": True}
    assert demo.algorithm.loss == "reward_backprop"
    assert demo.evaluation.prompts == "world-unseen"


@pytest.mark.parametrize(("config", "images"), [(None, 64), (DEMO, 4)], ids=["default", "demo"])
def test_a_round_of_the_packages_own_configurations(config, images, tmp_path) -> None:
    changes = [f"output={tmp_path}", f"rollout.batch_size={images}", "evaluation.images=12", "evaluation.prompts=world-unseen"]
    trainer = Trainer(load_config(config, [*changes, "run.tracker=none", "model.device=cpu"]))
    judged = trainer.parts.evaluator(trainer.parts.policy).summary()["judge"]
    assert set(judged) == {"right", *TAGS}
    metrics = trainer.round()
    assert metrics["reward_std"] > 0
    assert 0 < metrics["grad_norm"] < float("inf")
    assert metrics["skipped_updates"] == 0
