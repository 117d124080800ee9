"""The study of a model: fixed seeds, sets apart, base beside tuned, and what it leaves on disk."""

import json

import pytest
import torch
from PIL import Image
from tiny_runs import PROMPTS, brightness, largest_difference, lcm_pipeline, tiny_config, tiny_denoiser

from rlcm.commands import draw_images
from rlcm.errors import ConfigError, MissingFileError
from rlcm.evaluate import mean_interval
from rlcm.pipelines import load_pipeline
from rlcm.report import write_report
from rlcm.report.steps import lines_of, rewards_of, step_tables, write_plots
from rlcm.rewards import RewardMix, RewardPart, RewardSettings
from rlcm.study import Group, StudySettings, check_steps, default_rewards, draw_set, prompt_sets, study
from rlcm.study.study import sampler_at
from rlcm.trainer import Trainer

GROUP = Group("train", "train", tuple(PROMPTS), ({},) * 3, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two rounds on a tiny model, learning fast so that it differs from its base."""
    folder = tmp_path_factory.mktemp("study")
    lcm_pipeline().save_pretrained(folder / "model")
    config = tiny_config(
        folder / "runs", model={"path": str(folder / "model")}, rewards=["brightness"], prompts=PROMPTS, optimizer={"lr": 0.05},
        evaluation={"images": 9, "held_out": ["sharpness"]},
    )  # fmt: skip
    return Trainer(config).train(), config


@pytest.fixture(scope="module")
def studied(run):
    path, config = run
    groups = prompt_sets(config, True, ["others=animals-bare"], limit=2)
    rewards = default_rewards(config)
    notes = []
    settings = StudySettings(steps=(1, 2), each=3, batch_size=4)
    return study(config, path, groups, rewards, settings, path / "evaluation", notes.append), notes


def rows(found, **wanted):
    return [row for row in found["results"] if all(row[key] == value for key, value in wanted.items())]


def test_a_set_is_the_same_every_time_and_at_any_batch_size():
    denoiser = tiny_denoiser()
    mix = RewardMix([RewardPart("bright", brightness)])
    one, other = (draw_set(denoiser, GROUP, mix, None, each=2, seed=5, batch_size=size) for size in (1, 6))
    assert one.prompts == PROMPTS * 2
    assert len(set(one.seeds)) == 6
    assert largest_difference(one.images, other.images) < 1e-6
    torch.testing.assert_close(one.rewards["bright"], brightness(one.images, []))
    summary = one.summary({"bright": one.rewards["bright"] - torch.arange(6.0)})
    assert summary["rewards"]["bright"] == mean_interval(one.rewards["bright"])
    assert summary["change"]["bright"]["mean"] == pytest.approx(2.5, abs=1e-5)
    assert one.images_per_second > 0


def test_every_model_set_and_number_of_steps_is_there(studied):
    found, notes = studied
    assert found["own_steps"] == 3
    assert {(r["model"], r["set"], r["steps"]) for r in found["results"]} == {
        (m, s, n) for m in ("base", "tuned") for s in ("train", "others") for n in (1, 2, 3)
    }
    assert len(notes) == len(found["results"]) == 12
    assert [s["kind"] for s in found["sets"]] == ["train", "held-out"]
    assert [(r["label"], r["trained"]) for r in found["rewards"]] == [("brightness", True), ("sharpness", False)]
    assert all(row["images"] == 6 for row in found["results"])


def test_base_and_tuned_differ_in_nothing_but_the_tuning(studied, run):
    found, _ = studied
    path, config = run
    for row in rows(found, model="tuned"):
        base = rows(found, model="base", set=row["set"], steps=row["steps"])[0]
        expected = row["rewards"]["brightness"]["mean"] - base["rewards"]["brightness"]["mean"]
        assert row["change"]["brightness"]["mean"] == pytest.approx(expected, abs=1e-6)
        assert abs(expected) > 1e-6
    # The base model's pictures are those that the plain pipeline draws.
    pictured = next(p for p in found["pictures"] if p["model"] == "base" and p["set"] == "train")
    with Image.open(path / "evaluation" / pictured["file"]) as sheet:
        assert sheet.size == (2 * 16, 3 * 16)
    drawn = draw_images(
        load_pipeline(config.model), config.model, config.sampler, [pictured["prompts"][0]], pictured["seeds"][0], 1
    )
    assert pictured["rewards"]["brightness"][2][0] == pytest.approx(
        RewardMixOf("brightness")(drawn, [pictured["prompts"][0]]), abs=1e-5
    )


def RewardMixOf(name):  # noqa: N802 (reads like the class that it stands for)
    from rlcm.rewards import build_reward

    reward = build_reward(RewardSettings(name=name))
    return lambda images, prompts: float(reward(images, prompts)[0])


def test_the_run_is_left_as_it_was_and_its_page_shows_the_study(studied, run):
    path, _ = run
    assert json.loads((path / "evaluation" / "eval.json").read_text())["own_steps"] == 3
    looks = json.loads((path / "eval.json").read_text())
    assert studied[0]["round"] == looks["final_round"] == looks["evaluations"][-1]["round"]
    page = write_report(path).read_text()
    assert "How many steps it needs" in page
    assert "Every prompt: best, median, worst" in page
    assert "sharpness, held out" in page
    plots = write_plots(studied[0], path / "evaluation")
    assert len(plots) == 2
    with Image.open(plots[0]) as plot:
        assert plot.width > 1000


def test_tables_and_lines(studied):
    found, _ = studied
    tables = step_tables(found)
    assert [table["title"].partition(":")[0] for table in tables] == ["train", "others"]
    assert tables[0]["heads"][:2] == ["steps", "model"]
    assert [row[:2] for row in tables[0]["rows"]] == [[str(n), m] for n in (1, 2, 3) for m in ("base", "tuned")]
    lines = lines_of(found, rewards_of(found)[0], "steps", "train")
    assert [(line.label, line.x, line.dashed) for line in lines] == [("base", [1, 2, 3], True), ("tuned", [1, 2, 3], False)]


def test_a_model_alone_has_no_base_beside_it(run, tmp_path):
    _, config = run
    groups = prompt_sets(config, False, (), limit=2)
    assert [(g.name, g.kind, g.trained) for g in groups] == [("prompts", "held-out", 0)]
    found = study(config, None, groups, config.rewards, StudySettings(steps=(2,), each=1), tmp_path / "out")
    assert {row["model"] for row in found["results"]} == {"base"}
    assert not any(reward["trained"] for reward in found["rewards"])


def test_a_run_that_has_not_ended_is_refused(run, tmp_path):
    _, config = run
    notes = []
    with pytest.raises(MissingFileError, match="has not ended"):
        study(config, tmp_path, [GROUP], config.rewards, StudySettings(), tmp_path / "out", notes.append)
    assert not notes, "refused before the base model is drawn with"
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_loaded_leaves_no_folder(run, tmp_path):
    _, config = run
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "none")})})
    with pytest.raises(MissingFileError):
        study(config, None, [GROUP], config.rewards, StudySettings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sets_of_the_built_in_model():
    config = tiny_config("runs", model={"path": "builtin"}, prompts=["a cat", "a fox", "an ant"])
    sets = {g.name: g for g in prompt_sets(config, True, (), limit=48)}
    assert list(sets) == ["train", "unseen combinations", "unseen wording", "untrained animals"]
    assert len(sets["unseen combinations"].prompts) == 3
    assert sets["unseen wording"].prompts == ("a picture of a cat", "a picture of a fox", "a picture of an ant")
    assert len(sets["untrained animals"].prompts) == 42
    assert all(g.trained == 0 for g in sets.values() if g.kind == "unseen")
    animals = {g.name for g in prompt_sets(tiny_config("runs", model={"path": "builtin"}, prompts="animals"), True, (), 48)}
    assert "untrained animals" not in animals


def test_untrained_animals_are_asked_in_the_words_of_the_training():
    config = tiny_config("runs", model={"path": "builtin"}, prompts=["a cat on a red plain background"])
    untrained = next(g for g in prompt_sets(config, True, (), limit=1000) if g.name == "untrained animals")
    assert len(untrained.prompts) == 44 * 9
    assert all(p.endswith(" background") and " cat " not in p for p in untrained.prompts)


def test_limits_take_prompts_from_all_over_a_set():
    config = tiny_config("runs", prompts=[f"prompt {i}" for i in range(10)])
    (group,) = prompt_sets(config.model_copy(update={"model": config.model.model_copy(update={"path": "x/y"})}), True, (), 4)
    assert group.prompts == ("prompt 0", "prompt 2", "prompt 5", "prompt 7")


def test_sets_that_are_wanted(tmp_path):
    (tmp_path / "more.txt").write_text("a cat\nseven birds\n")
    config = tiny_config("runs", model={"path": "x/y"}, prompts=["a cat", "a dog"])
    sets = prompt_sets(config, True, [str(tmp_path / "more.txt"), "bare=animals-bare"], 48)
    assert [(g.name, g.kind, g.trained, len(g.prompts)) for g in sets] == [
        ("train", "train", 2, 2),
        ("more", "held-out", 1, 2),
        ("bare", "held-out", 0, 45),
    ]
    with pytest.raises(ConfigError, match="two sets are called animals"):
        prompt_sets(config, True, ["animals", "animals"], 48)
    with pytest.raises(MissingFileError, match="neither a file nor a built-in set"):
        prompt_sets(config, True, ["x=nowhere.txt"], 48)


def test_steps():
    assert check_steps("1,2,8") == (1, 2, 8)
    assert check_steps("") == ()
    for wrong in ("0", "1,,2", "two", "2000"):
        with pytest.raises(ConfigError, match="--steps"):
            check_steps(wrong)


def test_own_timesteps_hold_for_their_own_number_only():
    config = tiny_config("runs", sampler={"timesteps": [999, 499], "final_std": 0.1})
    assert config.sampler.calls == 2
    assert sampler_at(config.sampler, 2).timesteps == (999, 499)
    other = sampler_at(config.sampler, 4)
    assert (other.timesteps, other.steps, other.final_std) == (None, 4, 0.0)
