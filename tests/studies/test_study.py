"""The study of a model: fixed seeds, sets apart, base beside tuned, and what it leaves on disk."""

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from exported_runs import finished_run, images, lcm_scheduler, save_run
from PIL import Image
from tiny_pipelines import pixart, pixel
from tiny_runs import PROMPTS, brightness, largest_difference, lcm_pipeline, stir, tiny_config, tiny_denoiser

from rlcm.builtin.vocabulary import TAGS
from rlcm.cli.work import evaluate as commands
from rlcm.cli.work.evaluate import print_study
from rlcm.errors import ConfigError, MissingFileError, UsageError
from rlcm.pipelines import ModelSettings, SamplerSettings, load_pipeline, make_denoiser
from rlcm.policy.policy import Policy
from rlcm.policy.rollout import decode_images, sample_latents
from rlcm.processes.memory_retry import BatchSize
from rlcm.report import write_report
from rlcm.report.steps import lines_of, rewards_of, step_tables, write_plots
from rlcm.rewards import RewardMix, RewardPart, RewardSettings
from rlcm.runs.own_folder import MARK
from rlcm.sharing import tuned_pipeline
from rlcm.studies.evaluation import Group, StudySettings, check_steps, default_rewards, draw_set, own_folder, prompt_sets, study
from rlcm.studies.evaluation.study import sampler_at
from rlcm.training.evaluate import mean_interval
from rlcm.training.prompts import load_prompts
from rlcm.training.trainer import Trainer
from rlcm.tuning.drawing import draw_images

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
    one, other = (draw_set(denoiser, GROUP, mix, None, each=2, seed=5, sampling=BatchSize(n, "n")) for n in (1, 6))
    assert one.prompts == PROMPTS * 2
    assert len(set(one.seeds)) == 6
    assert largest_difference(one.images, other.images) < 1e-6
    torch.testing.assert_close(one.rewards["bright"], brightness(one.images, []))
    summary = one.summary({"bright": one.rewards["bright"] - torch.arange(6.0)})
    assert summary["rewards"]["bright"] == mean_interval(one.rewards["bright"])
    assert summary["change"]["bright"]["mean"] == pytest.approx(2.5, abs=1e-5)
    assert one.images_per_second > 0


def test_a_batch_that_is_too_large_is_halved_and_the_images_stay(monkeypatch):
    denoiser = tiny_denoiser()
    mix = RewardMix([RewardPart("bright", brightness)])
    wanted = draw_set(denoiser, GROUP, mix, None, each=3, seed=5, sampling=BatchSize(9, "n"))

    def narrow(denoiser, table, conditioning, seeds):
        if len(seeds) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return sample_latents(denoiser, table, conditioning, seeds)

    monkeypatch.setattr("rlcm.studies.evaluation.draw.sample_latents", narrow)
    told = []
    sampling = BatchSize(8, "rollout.sample_batch_size", told.append)
    # Seconds of the batches of 2, of which the last is a single image: the first takes 1 s, the others take 2, 4, 8, 16.
    times = iter([0, 1, 1, 3, 3, 7, 7, 15, 15, 31])
    found = draw_set(denoiser, GROUP, mix, None, each=3, seed=5, sampling=sampling, clock=lambda: float(next(times)))
    assert sampling.size == 2
    assert len(told) == 2
    assert "rollout.sample_batch_size=2" in told[-1]
    assert largest_difference(found.images, wanted.images) < 1e-6
    assert found.images_per_second == pytest.approx((2 / 2 + 2 / 4) / 2)


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


def builtin_sets(prompts, limit=1000, **changes):
    """Return the sets of prompts that a run of the built-in model is asked, by name."""
    config = tiny_config("runs", model={"path": "builtin"}, prompts=prompts, **changes)
    return {group.name: group for group in prompt_sets(config, True, (), limit)}


def test_sets_of_the_built_in_model():
    sets = builtin_sets("world")
    assert [(g.name, g.kind, g.trained, len(g.prompts)) for g in sets.values()] == [
        ("train", "train", 187, 187),
        ("unseen prompts", "unseen", 0, 135),
        ("unseen combinations", "unseen", 0, 120),
    ]
    for name, source in (("train", "world"), ("unseen prompts", "world-unseen"), ("unseen combinations", "world-held-out")):
        known = load_prompts(source)
        assert (sets[name].prompts, sets[name].metadata) == (known.prompts, known.metadata)
    assert [len(group.prompts) for group in builtin_sets("world", limit=48).values()] == [48] * 3
    looked_at = builtin_sets("world", evaluation={"prompts": "world-objects"})
    assert list(looked_at) == ["train", "evaluation", "unseen prompts", "unseen combinations"]


@pytest.mark.parametrize(
    ("prompts", "kinds", "names"),
    [
        (["three foxes", "two red cars"], {"counting"}, ["unseen prompts", "unseen combinations"]),
        (["a fox", "a red car"], {"single_object", "colors"}, ["unseen prompts", "unseen combinations"]),
        (["a fox", "an owl"], {"single_object"}, ["unseen prompts"]),  # no single thing is held out of pretraining
        ("world-objects", set(), []),  # there are no others of the kind
        (["a camel at dawn"], set(TAGS), ["unseen prompts", "unseen combinations"]),
    ],
)
def test_unseen_prompts_are_of_the_kinds_that_were_trained(prompts, kinds, names):
    sets = builtin_sets(prompts)
    assert list(sets) == ["train", *names]
    unseen = [group for group in sets.values() if group.kind == "unseen"]
    assert {entry["tag"] for group in unseen for entry in group.metadata} == kinds
    assert not any(set(group.prompts) & set(sets["train"].prompts) for group in unseen)


def test_prompts_without_what_the_runs_rewards_are_told_are_left_out_with_a_word(tmp_path, caplog):
    file = tmp_path / "m.jsonl"
    file.write_text('{"prompt": "a fox", "target": 0.2}\n{"prompt": "a dog", "target": 0.9}\n')
    assert list(builtin_sets(str(file))) == ["train"]
    assert "the set 'unseen prompts' is left out: its prompts have no target, which the run's have and" in caplog.text


def test_a_trained_prompt_is_not_asked_as_unseen():
    first = load_prompts("world-unseen").prompts[0]
    assert first not in builtin_sets([first, "a fox"])["unseen prompts"].prompts


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
    with pytest.raises(ConfigError, match=r"--prompts='=animals' gives its set no name; write --prompts animals, or a name"):
        prompt_sets(config, True, ["=animals"], 4)
    with pytest.raises(ConfigError, match=r"two sets are called animals; name them, as in --prompts other=animals\."):
        prompt_sets(config, True, ["animals", "animals"], 48)
    with pytest.raises(ConfigError, match=r"two sets are called x; name them, as in --prompts other=animals-bare\."):
        prompt_sets(config, True, ["x=animals", "x=animals-bare"], 48)
    with pytest.raises(MissingFileError, match="neither a file nor a built-in set"):
        prompt_sets(config, True, ["x=nowhere.txt"], 48)


def test_steps():
    assert check_steps("1,2,8") == (1, 2, 8)
    with pytest.raises(ConfigError, match=r"--steps '1,,2' is not a list .*nothing between two commas"):
        check_steps("1,,2")
    assert check_steps(None) == ()
    assert check_steps("1, 1e1") == (1, 10)
    for wrong in ("", "0", "1,,2", "two", "2000", "２", "1;2", "1.5"):
        with pytest.raises(ConfigError, match="--steps"):
            check_steps(wrong)


def test_own_timesteps_hold_for_their_own_number_only():
    config = tiny_config("runs", sampler={"timesteps": [999, 499], "final_std": 0.1})
    assert config.sampler.calls == 2
    assert sampler_at(config.sampler, 2).timesteps == (999, 499)
    other = sampler_at(config.sampler, 4)
    assert (other.timesteps, other.steps, other.final_std) == (None, 4, 0.0)


def test_scms_own_timesteps_have_an_entry_more_than_steps():
    sampler = SamplerSettings(scheduler="scm", timesteps=(1.57, 1.3, 0.0))
    assert sampler.calls == 2
    assert sampler_at(sampler, 2).timesteps == (1.57, 1.3, 0.0)
    assert (sampler_at(sampler, 3).timesteps, sampler_at(sampler, 3).steps) == (None, 3)


def broken(images, prompts):
    """A reward whose service is not there."""
    raise ConnectionError("nobody answers")


def blind(images, prompts):
    """A reward that sees nothing in any image."""
    return torch.full((len(images),), float("nan"))


def strict_json(text):
    """Return what JSON says, as readers do that know no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("reward", ["broken", "blind"])
@pytest.mark.parametrize("first", [True, False])
def test_a_reward_that_fails_for_all_images_costs_nothing_else(run, tmp_path, reward, first):
    path, config = run
    failing = RewardSettings(name=f"{__file__}:{reward}", on_failure="skip")
    rewards = [failing, *config.rewards] if first else [*config.rewards, failing]
    found = study(config, path, [GROUP], rewards, StudySettings(steps=(1,), each=3), tmp_path / "out")
    assert strict_json((tmp_path / "out/eval.json").read_text()) == found
    assert [r["rewards"][reward]["mean"] for r in found["results"]] == [None] * 4
    assert [r["change"][reward]["mean"] for r in rows(found, model="tuned")] == [None] * 2
    assert all(isinstance(r["rewards"]["brightness"]["mean"], float) for r in found["results"])
    assert found["pictures"][0]["rewards"][reward] == [[None] * 3] * 2
    extremes = tmp_path / "out/pictures/prompts.json"
    assert extremes.is_file() is not first, "by a reward that scores nothing, no image is the best"
    if not first:
        described = strict_json(extremes.read_text())
        assert described["ordered_by"] == "brightness"
        assert described["rewards"][reward] == [None] * 9
    assert len(write_plots(found, tmp_path / "out")) == 2


def test_the_pictures_say_what_they_are_ordered_by(studied, run, tmp_path):
    path, config = run
    described = json.loads((path / "evaluation/pictures/prompts.json").read_text())
    assert described["ordered_by"] == "brightness"
    best, median, worst = described["rewards"]["brightness"][:3]
    assert best >= median >= worst
    penalty = [RewardSettings(name="jpeg_compressibility", weight=-1.0), *config.rewards]
    found = study(config, None, [GROUP], penalty, StudySettings(steps=(3,), each=3), tmp_path / "out")
    assert [reward["weight"] for reward in found["rewards"]] == [-1.0, 1.0]
    assert rewards_of(found)[0]["lower_is_better"] is False, "less of it is better shown, and as a penalty more"
    described = json.loads((tmp_path / "out/pictures/prompts.json").read_text())
    assert described["ordered_by"] == "jpeg_compressibility"
    assert described["display"]["better"] == "lower"
    best, median, worst = described["rewards"]["jpeg_compressibility"][:3]
    assert best <= median <= worst


def test_a_reward_of_the_run_has_the_weight_that_it_had_there(run, tmp_path):
    path, config = run
    penalised = config.model_copy(update={"rewards": [RewardSettings(name="brightness", weight=-1.0)]})
    asked = [RewardSettings(name="brightness"), RewardSettings(name="jpeg_compressibility", weight=2.0)]
    found = study(penalised, path, [GROUP], asked, StudySettings(steps=(3,), each=1), tmp_path / "out")
    assert [(reward["trained"], reward["weight"]) for reward in found["rewards"]] == [(True, -1.0), (False, 2.0)]


def test_an_earlier_studys_files_go_and_others_stay(run, tmp_path):
    _, config = run
    (tmp_path / "pictures").mkdir()
    own = [
        "eval.json",
        "reward-1.png",
        "reward-2.png",
        *(f"pictures/{n}" for n in ("tuned-1.png", "prompts.png", "prompts.json")),
    ]
    others = ["notes.txt", "reward-mine.png", "pictures/cat.png", "pictures/base-1.png.bak"]
    for name in own + others:
        (tmp_path / name).write_text("old")
    with pytest.raises(UsageError, match=r"would replace eval\.json.*choose another folder with -o"):
        study(config, None, [GROUP], config.rewards, StudySettings(steps=(3,), each=2), tmp_path)
    (tmp_path / "eval.json").write_text('{"own_steps": 3, "sets": [], "results": []}')  # a study of an earlier version
    study(config, None, [GROUP], config.rewards, StudySettings(steps=(3,), each=2), tmp_path)
    left = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
    assert left == sorted([MARK, "eval.json", "pictures/base-1.png", *others])
    assert json.loads((tmp_path / "eval.json").read_text())["results"]


def test_a_study_goes_into_no_run_but_at_its_own_place(run):
    path, config = run
    before = (path / "eval.json").read_bytes()
    for place in (path, path / "final"):
        with pytest.raises(UsageError, match="holds a run"):
            study(config, path, [GROUP], config.rewards, StudySettings(steps=(3,), each=1), place)
    assert (path / "eval.json").read_bytes() == before
    for _ in range(2):
        assert own_folder(path / "evaluation").require() is None


def test_a_trained_function_is_known_by_its_label_from_any_path(run, tmp_path):
    path, config = run
    trained = [RewardSettings(name="__main__:blind"), RewardSettings(name="jpeg_compressibility", args={"quality": 80})]
    config = config.model_copy(update={"rewards": trained})
    given = [
        RewardSettings(name=f"{__file__}:blind", on_failure="skip"),
        RewardSettings(name="jpeg_compressibility"),
        RewardSettings(name="brightness"),
    ]
    found = study(config, path, [GROUP], given, StudySettings(steps=(3,), each=1, base=False), tmp_path / "out")
    assert [r["trained"] for r in found["rewards"]] == [True, False, False]


def test_a_runs_own_reward_is_not_replaced_by_a_later_one_of_its_label():
    config = tiny_config(
        "runs", model={"path": "builtin"}, rewards=["mine.py:alignment"], evaluation={"held_out": ["other.py:alignment"]}
    )
    assert [r.name for r in default_rewards(config)] == ["mine.py:alignment"]


@pytest.mark.parametrize(
    ("name", "label", "named"),
    [
        ("__main__:darkness", "darkness", "darkness"),
        ("mine:main.<locals>.darkness", "darkness", "darkness"),
        ("mine:Darkness()", "Darkness()", "NAME"),
        ("mine:<lambda>", "<lambda>", "NAME"),
    ],
)
def test_a_reward_of_a_script_is_asked_for_by_its_file(tmp_path, name, label, named):
    config = tiny_config(tmp_path, rewards=[{"name": name, "label": label}, "brightness"], model={"path": "x/y"})
    (tmp_path / "config.yaml").write_text(config.dump())
    with pytest.raises(ConfigError, match=rf"--rewards path/to/file.py:{named} --rewards brightness$"):
        commands.evaluate(str(tmp_path), None, (), (), 1, 1, 0, True, None)


def test_images_are_sampled_as_in_training(run, tmp_path, monkeypatch, capsys):
    path, config = run
    commands.evaluate(str(path), "3", ("brightness",), (), 1, 2, 0, False, tmp_path / "out")
    assert json.loads((tmp_path / "out/eval.json").read_text())["batch_size"] == config.rollout.batch_size == 6
    assert str(tmp_path / "out/reward-1.png") in capsys.readouterr().out


def test_prompts_of_a_configuration_that_are_elsewhere(tmp_path):
    config = tiny_config(tmp_path, model={"path": "x/y"}, prompts="prompts/mine.txt")
    with pytest.raises(MissingFileError, match=r"prompts/mine.txt.*counts from the working directory: start this command in"):
        prompt_sets(config, True, (), 48)
    config = tiny_config(tmp_path, model={"path": "x/y"}, prompts=["a"], evaluation={"prompts": "prompts/mine.txt"})
    with pytest.raises(MissingFileError, match=r"prompts/mine.txt.*counts from the working directory: start this command in"):
        prompt_sets(config, True, (), 48)


def test_every_column_and_name_is_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    labels = [f"a_reward_of_mine_{i}[x]" for i in range(6)]
    rewards = {label: {"mean": 10.5 + i, "ci95": 0.1} for i, label in enumerate(labels)}
    print_study(
        {
            "sets": [{"name": "my [v2]", "kind": "held-out"}],
            "results": [{"model": "base", "set": "my [v2]", "steps": 4, "images": 8, "rewards": rewards}],
        }
    )
    text = capsys.readouterr().out
    assert "my [v2]: held-out" in " ".join(text.split())
    for i, label in enumerate(labels):
        assert label.replace("_", " ") in text
        assert f"{10 + i}.5 ± 0.1" in text


def make_tuned(make, folder, **changes):
    """Return the folder and the configuration of a run that has ended, and what its policy draws."""
    make().save_pretrained(folder / "model")
    config = tiny_config(folder / "runs", **{**changes, "model": {"path": str(folder / "model"), **changes.get("model", {})}})
    policy = stir(Policy(make_denoiser(load_pipeline(config.model), config.sampler, config.model), config.lora), size=0.3)
    return SimpleNamespace(path=save_run(policy, config).path, config=config, images=drawn_by(policy.denoiser, config))


def drawn_by(denoiser, config):
    conditioning = denoiser.encode(config.prompts)
    return decode_images(denoiser, sample_latents(denoiser, denoiser.table, conditioning, [5] * len(config.prompts)))


FAMILIES_WITHOUT_LOADER = {
    "pixart": (lambda: pixart(lcm_scheduler()), {"sampler": {"guidance": 1.0}, "model": {"height": 16, "width": 16}}),
    "pixel": (pixel, {"sampler": {"guidance": None}, "prompts": ["1", "2"]}),
}


@pytest.mark.parametrize("kind", FAMILIES_WITHOUT_LOADER)
def test_what_diffusers_loads_no_lora_into_is_tuned_all_the_same(kind, tmp_path):
    make, changes = FAMILIES_WITHOUT_LOADER[kind]
    run = make_tuned(make, tmp_path, **{"prompts": PROMPTS, **changes})
    assert not hasattr(getattr(diffusers, type(make()).__name__), "load_lora_weights")
    found, base = (
        drawn_by(make_denoiser(tuned_pipeline(run.config, path), run.config.sampler, run.config.model), run.config)
        for path in (run.path, None)
    )
    assert largest_difference(found, run.images) < 1e-4
    assert largest_difference(base, run.images) > 1e-2


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_small_changes_of_half_precision_weights_are_not_rounded_away(precision, tmp_path):
    run = make_tuned(lcm_pipeline, tmp_path, prompts=PROMPTS, model={"precision": precision, "device": "cpu"})

    def adapters(**how):
        unet = tuned_pipeline(run.config, run.path, **how).unet
        assert not any(p.requires_grad for p in unet.parameters())
        return {p.dtype for name, p in unet.named_parameters() if "lora_" in name}

    assert adapters() == set(), "the playground blends weights, and needs them by their own names"
    assert adapters(beside=True) == ({torch.float32} if precision == "bf16" else set())
    pipeline = tuned_pipeline(run.config, run.path, beside=True)
    found = drawn_by(make_denoiser(pipeline, run.config.sampler, run.config.model), run.config)
    assert largest_difference(found, run.images) < (1e-6 if precision == "bf16" else 1e-4)


def test_a_lora_that_the_model_came_with_stays_beside(tmp_path):
    first = finished_run(tmp_path / "first", lcm_pipeline, {"guidance": 3.0}, 4, 8, 0.3)
    lora = {"path": str(first.path / "final"), "scale": 0.5, "fuse": False}
    model = ModelSettings.model_validate(first.config.model.model_dump() | {"loras": [lora]})
    found = images(tuned_pipeline(first.config.model_copy(update={"model": model}), first.path), 3.0)
    plain = first.fresh()
    plain.load_lora_weights(first.path / "final")
    plain.set_adapters(plain.get_active_adapters(), 1.5)
    assert largest_difference(found, images(plain, 3.0)) < 1e-4
