"""The built-in model as shipped: loadable by plain diffusers, the same pictures either way, good enough by the held-out judge."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from rlcm.builtin import ANIMALS, COLOURS, DEMO, PATTERNS, WEIGHTS, Scene, caption, is_held_out, model_path
from rlcm.builtin.judging import PromptJudge, named
from rlcm.builtin.renderer import SIZE, Renderer, _background, random_scenes
from rlcm.cli.work.sample import draw_images
from rlcm.errors import MissingFileError
from rlcm.pipelines import load_pipeline
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.training.config import load_config

PROMPTS = ["a fox on a blue striped background", "a whale on a white plain background", "a bee"]


def test_weights_are_safetensors_of_at_most_24_mb() -> None:
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 24e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".md"}


@pytest.mark.parametrize("steps", [1, 4])
def test_plain_diffusers_draws_what_sample_draws(steps: int) -> None:
    plain = LatentConsistencyModelPipeline.from_pretrained(model_path("student"))
    plain.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(7) for _ in PROMPTS]
    theirs = plain(PROMPTS, num_inference_steps=steps, guidance_scale=3.0, generator=generators, output_type="np").images
    model = ModelSettings(path="builtin")
    ours = draw_images(load_pipeline(model), model, SamplerSettings(steps=steps, guidance=3.0), PROMPTS, seed=7, count=1)
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


def test_the_judge_recognises_what_the_student_draws() -> None:
    """A small sample of what `rlcm builtin evaluate` measures on 1,000 images a figure."""
    prompts = [caption(Scene(animal, (3 * animal) % len(COLOURS), animal % len(PATTERNS))) for animal in range(len(ANIMALS))]
    model = ModelSettings(path="builtin")
    images = draw_images(load_pipeline(model), model, SamplerSettings(steps=4, guidance=3.0), prompts, seed=0, count=2)
    judged = PromptJudge()(images, [prompt for prompt in prompts for _ in range(2)])
    assert judged["animal"].float().mean() >= 0.85
    assert judged["colour"].float().mean() >= 0.85
    wrong = PromptJudge()(images, [prompt for prompt in prompts[1:] + prompts[:1] for _ in range(2)])
    assert wrong["animal"].float().mean() <= 0.1


def test_clip_prefers_the_true_prompt() -> None:
    clip, tokenizer = CLIPModel.from_pretrained(model_path("clip")), CLIPTokenizer.from_pretrained(model_path("clip"))
    model = ModelSettings(path="builtin")
    images = draw_images(load_pipeline(model), model, SamplerSettings(steps=4, guidance=3.0), PROMPTS, seed=1, count=1)
    tokens = tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        scores = clip(input_ids=tokens.input_ids, pixel_values=images * 2 - 1).logits_per_image
    assert scores.argmax(1).tolist() == [0, 1, 2]


def test_the_card_states_the_measured_figures() -> None:
    figures = json.loads((WEIGHTS / "evaluation.json").read_text())
    card = (WEIGHTS / "README.md").read_text()
    assert figures["images_each"] >= 1000
    assert f"{figures['student_4']['animal']:.1%}" in card
    assert f"{figures['autoencoder']['psnr_db']:.2f} dB" in card


def test_an_unknown_part_is_named_with_those_there_are() -> None:
    with pytest.raises(MissingFileError, match="student, teacher, clip, judge"):
        model_path("vae")


def test_the_configuration_of_the_demo_is_valid() -> None:
    assert load_config(DEMO).rewards[0].name == "jpeg_compressibility"


def test_prompts_are_read_back() -> None:
    prompt = caption(Scene(ANIMALS.index("ant"), list(COLOURS).index("red"), PATTERNS.index("striped")))
    assert prompt == "an ant on a red striped background"
    assert named(prompt, ANIMALS) == ANIMALS.index("ant")
    assert named(prompt, tuple(COLOURS)) == list(COLOURS).index("red")
    assert named("a picture of nothing", ANIMALS) is None
    assert named("a cat and a dog", ANIMALS) is None


def test_one_combination_of_every_animal_is_held_out() -> None:
    held_out = [[is_held_out(animal, colour) for colour in range(len(COLOURS))] for animal in range(len(ANIMALS))]
    assert [sum(row) for row in held_out] == [1] * len(ANIMALS)
    assert all(is_held_out(scene.animal, scene.colour) for scene in random_scenes(100, 5, held_out=True))
    assert not any(is_held_out(scene.animal, scene.colour) for scene in random_scenes(1000, 5, held_out=False))


def test_scenes_come_equally_often_and_by_seed() -> None:
    scenes = random_scenes(2 * 405, 9)
    counts: dict[tuple[int, int], int] = {}
    for scene in scenes:
        counts[scene.animal, scene.colour] = counts.get((scene.animal, scene.colour), 0) + 1
    assert set(counts.values()) == {2}
    assert random_scenes(20, 9) == random_scenes(20, 9)
    assert random_scenes(20, 9) != random_scenes(20, 10)


@pytest.mark.parametrize("pattern", range(len(PATTERNS)))
def test_backgrounds_keep_their_colour(pattern: int) -> None:
    for colour, value in enumerate(COLOURS.values()):
        drawn = _background(Scene(0, colour, pattern), np.random.default_rng(4))
        assert drawn.shape == (SIZE, SIZE, 3)
        nearest = np.abs(np.array(list(COLOURS.values())) - drawn.reshape(-1, 3).mean(0)).sum(1).argmin()
        assert nearest == colour, (value, pattern)


def test_a_missing_font_is_told_with_the_remedy() -> None:
    with pytest.raises(MissingFileError, match="fonts-noto-color-emoji"):
        Renderer("/nowhere/font.ttf")
