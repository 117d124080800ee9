"""The recipe of the world, every stage for two updates on a few pictures: what it leaves is a model that plain diffusers loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline
from transformers import CLIPModel

from rlcm.builtin.detector import CELLS, JudgeDetector, Maps, RewardDetector, read
from rlcm.builtin.scenes import SIZE, Thing, arrange, draw_asked
from rlcm.builtin.verdict import verdict
from rlcm.builtin.vocabulary import CLASSES, COLOURS, TAGS, metadata
from rlcm.distillation.fit import Fit
from rlcm.errors import ConfigError, MissingFileError
from rlcm.recipe import data, main, measure
from rlcm.recipe import stages as plan
from rlcm.recipe.autoencoder import crops, new_autoencoder, standardised
from rlcm.recipe.broken import Breaker, worn
from rlcm.recipe.card import bar_rows
from rlcm.recipe.clip import seen
from rlcm.recipe.data import Batch
from rlcm.recipe.detectors import bells, detection_loss
from rlcm.recipe.words import corpus, make_tokenizer, wording


class Squares:
    """Draws a coloured square for a thing, in place of the emoji font."""

    def __init__(self, font=None):
        pass

    def draw(self, things, seed):
        picture = np.full((SIZE, SIZE, 3), 220 + seed % 30, np.uint8)
        for thing in things:
            left, top, right, bottom = (
                int(v + d * thing.side / 2) for v, d in ((thing.x, -1), (thing.y, -1), (thing.x, 1), (thing.y, 1))
            )
            picture[top:bottom, left:right] = (10 * thing.kind, 50 * (thing.colour or 0), 90)
        return picture


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a recipe that went through all stages, tiny."""
    work = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        _tiny(patch)
        main.train_all(work, work / "weights", Path("no font"), [], None)
        main.evaluate_all(work, work / "weights", Path("no font"))
    return work


def _tiny(patch):
    patch.setattr(data, "Renderer", Squares)
    patch.setattr("rlcm.recipe.detectors.Renderer", Squares)
    patch.setattr(plan, "STAGES", {name: Fit(2, fit.lr, fit.muon_lr, warmup=1) for name, fit in plan.STAGES.items()})
    patch.setattr(plan, "BATCH", dict.fromkeys(plan.BATCH, 4))
    patch.setattr(plan, "PICTURES", 8)
    patch.setattr(plan, "TRAJECTORIES", 8)
    patch.setattr("rlcm.recipe.student.NODES", 3)
    patch.setattr("rlcm.recipe.autoencoder.STANDARD", 8)
    patch.setattr(measure, "COUNTS", (6, 6, 2))
    patch.setattr(measure, "TEACHER_STEPS", 2)


@pytest.mark.slow
def test_every_stage_leaves_its_part_and_all_of_it_fits_the_package(made):
    weights = made / "weights"
    files = [file for file in weights.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 27e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert CLIPModel.from_pretrained(weights / "clip").config.projection_dim == 64
    for kind, name in ((RewardDetector, "detector"), (JudgeDetector, "judge")):
        assert kind.load(weights / name / "model.safetensors").find(torch.rand(2, 3, 64, 64)) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipeline", "part", "options"),
    [
        (LatentConsistencyModelPipeline, "student", {"num_inference_steps": 2}),
        (StableDiffusionPipeline, "teacher", {"num_inference_steps": 2}),
    ],
)
def test_plain_diffusers_draws_with_it(made, pipeline, part, options):
    loaded = pipeline.from_pretrained(made / "weights" / part)
    loaded.set_progress_bar_config(disable=True)
    images = loaded(["a fox", "two red stars"], guidance_scale=3.0, output_type="np", **options).images
    assert images.shape == (2, SIZE, SIZE, 3)
    assert np.isfinite(images).all()


@pytest.mark.slow
def test_the_card_says_what_was_measured(made):
    figures, card = json.loads((made / "weights" / "evaluation.json").read_text()), (made / "weights" / "README.md").read_text()
    assert set(figures["student_4"]["score"]) == {*TAGS, "overall"}
    assert "single_object" not in figures["student_4_held_out"]["score"]  # nothing of this kind is held out
    assert f"{figures['autoencoder']['psnr_db']:.2f} dB" in card
    assert card.count("\n| ") > len(plan.STAGES)


def test_a_bar_is_reached_or_not():
    score = dict.fromkeys([*TAGS, "overall"], 0.6)
    figures = {
        "judge_on_renders": dict.fromkeys(score, 0.99),
        "detector_on_renders": dict.fromkeys(score, 0.99) | {"position": 0.9},
        "autoencoder": {"psnr_db": 29.5, "score": score, "score_of_the_renders": score},
        "teacher_50": {"score": score | {"overall": 0.7}},
    } | {f"student_{n}": {"score": score, "sharpness": 1 - 0.3 / n if n < 8 else 0.2} for n in (1, 2, 4, 8)}
    reached = [row[-1] for row in bar_rows(figures)]
    assert reached == [True, False, True, True, True, False, True, False]


def test_a_stage_that_there_is_not_and_one_that_needs_another(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--stage teach: there is no such stage; use autoencoder"):
        main.train_all(tmp_path, tmp_path / "weights", None, ["teach"], None)
    monkeypatch.setattr(data, "Renderer", Squares)
    with pytest.raises(MissingFileError, match="rlcm builtin train --stage autoencoder"):
        main.train_all(tmp_path, tmp_path / "weights", None, ["teacher"], None)
    with pytest.raises(MissingFileError, match="holds no built-in model"):
        main.evaluate_all(tmp_path, tmp_path, None)


def _batch(count=12, seed=3):
    rng = np.random.default_rng(seed)
    asked = [draw_asked(rng, None) for _ in range(count)]
    things = [arrange(a, rng, None) for a in asked]
    images = np.stack([Squares().draw(t, i) for i, t in enumerate(things)])
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, asked, things)


def test_batches_are_the_same_by_number():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "Renderer", Squares)
        pictures = data.Pictures(Path("font"), 5, held_out=False)
        first, again, other = (pictures.batch(3, number) for number in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert first.things == again.things
    assert first.things != other.things


def test_crops_hold_a_thing_and_lie_on_the_grid_of_latents():
    batch = _batch()
    for seed in range(5):
        pieces = crops(batch, torch.Generator().manual_seed(seed))
        assert pieces.shape == (12, 3, 32, 32)
        assert all(float(piece.min()) < 0.5 for piece in pieces)  # not ground alone


def test_standardised_latents_change_no_picture():
    torch.manual_seed(0)
    vae, images = new_autoencoder().eval(), torch.rand(6, 3, 64, 64)
    with torch.no_grad():
        before = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample
        standardised(vae, images)
        latents = vae.encode(images * 2 - 1).latent_dist
        after = vae.decode(latents.mean).sample
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.mean.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.mean.std((0, 2, 3)), torch.ones(16), rtol=0, atol=1e-3)
    assert float(latents.std.max()) < 1e-4


def test_broken_pictures_keep_only_whole_things():
    batch = _batch(60)
    breaker = Breaker(Squares(), 7)
    broken = breaker(batch, 0)
    assert torch.equal(broken.images, breaker(batch, 0).images)
    untouched = [torch.equal(a, b) for a, b in zip(broken.images, batch.images, strict=True)]
    assert 20 <= sum(untouched) <= 45
    for same, left, there in zip(untouched, broken.things, batch.things, strict=True):
        assert set(left) <= set(there)
        assert left == there or not same
    assert sum(not left for left in broken.things) >= 5
    assert float(broken.images.min()) >= -1e-6
    assert float(broken.images.max()) <= 1 + 1e-6
    assert worn(batch.images, torch.Generator().manual_seed(0)).shape == batch.images.shape


@pytest.mark.parametrize("way", range(7))
def test_every_way_of_breaking_keeps_the_shape(way):
    batch, rng = _batch(), np.random.default_rng(way)
    for image, things, other in zip(batch.images, batch.things, batch.images.flip(0), strict=True):
        changed, left = Breaker(Squares(), 7)._ways[way](image, things, other, rng)
        assert changed.shape == image.shape
        assert len(left) <= len(things)


def test_maps_that_say_what_is_there_are_read_as_it_and_have_hardly_a_loss():
    batch = _batch(40)
    output = torch.full((40, len(CLASSES) + len(COLOURS) + 3, CELLS, CELLS), -9.0)
    target = bells(batch.things)
    output[:, : len(CLASSES)] = torch.where(target == 1, 9.0, -9.0)
    cells = torch.arange(CELLS) + 0.5
    for b, things in enumerate(batch.things):
        for t in things:
            near = (slice(max(0, int(t.y / 4) - 1), int(t.y / 4) + 2), slice(max(0, int(t.x / 4) - 1), int(t.x / 4) + 2))
            if t.colour is not None:
                output[b, len(CLASSES) + t.colour][near] = 9.0
            output[b, -3][near] = (t.x / 4 - cells[None, :]).expand(CELLS, CELLS)[near]
            output[b, -2][near] = (t.y / 4 - cells[:, None]).expand(CELLS, CELLS)[near]
            output[b, -1][near] = t.side / 4
    found = read(Maps(output))
    for things, seen_by_maps, asked in zip(batch.things, found, batch.asked, strict=True):
        key = lambda f: (f.name, f.colour, *(round(v, 3) for v in f.box))  # noqa: E731
        assert sorted(map(key, seen_by_maps), key=str) == sorted(map(key, seen(things)), key=str)
        assert verdict(seen_by_maps, metadata(asked))
    assert float(detection_loss(Maps(output), batch.things)["loss"]) < 0.01
    assert float(detection_loss(Maps(output), [()] * 40)["loss"]) > 1.0
    moved = [tuple(Thing((t.kind + 1) % 20, t.colour, t.x, t.y, t.side) for t in things) for things in batch.things]
    assert float(detection_loss(Maps(output), moved)["loss"]) > 1.0


def test_every_word_of_a_prompt_is_one_token(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    for text in corpus()[::500]:
        assert len(tokenizer.tokenize(text)) == len(text.split())
    assert wording("an owl and a cat", 1) == "owl and a cat"
    assert wording("two cats", 1) == "two cats"
