"""The form made from the configuration: every setting, there and back, and what is wrong in plain sentences."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcm.builtin import DEMO, PUBLISHED
from rlcm.errors import ConfigError, MissingFileError
from rlcm.settings import Settings
from rlcm.training.config import TrainConfig, load_config, parse_settings
from rlcm.ui.form import (
    PLAIN,
    STARTS,
    behind,
    choices_of,
    fields,
    in_form_words,
    in_front,
    plan,
    read_form,
    start_from,
    values_of,
)
from rlcm.yaml_text import read_yaml

CONFIGS = [PUBLISHED, DEMO, *sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))]


def leaves(kind, before=""):
    for name, info in kind.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            yield from leaves(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def test_every_setting_has_a_field_but_the_folder():
    assert [field.key for field in fields()] == [key for key in leaves(TrainConfig) if key != "output"]
    shown = [field.key for field in in_front()] + [field.key for group in behind().values() for field in group]
    assert sorted(shown) == sorted(field.key for field in fields())
    assert [field.key for field in in_front()] == list(PLAIN)
    assert all(field.meaning for field in fields())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_there_and_back(path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    config = load_config(path)
    back = parse_settings(TrainConfig, config.model_dump(mode="json") | read_values(config))
    assert back == config


def read_values(config):
    """Return what the fields read of what they show, nested, without looking anything up."""
    values = {}
    for field in fields():
        *groups, last = field.key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        value = field.read(values_of(config)[field.key])
        if value is not None or field.optional:
            place[last] = value
    return values


def test_kinds_and_ranges():
    known = {field.key: field for field in fields()}
    assert known["run.rounds"].kind == "whole"
    assert known["run.rounds"].minimum == 1
    assert known["optimizer.lr"].kind == "number"
    assert known["optimizer.lr"].maximum == 1
    assert known["lora.rank"].range == "1 to 1,024."
    assert known["run.save_every"].range == "0 to 1,000,000,000."
    assert known["run.tracker"].range == ""
    assert known["algorithm.loss"].kind == "choice"
    assert "rebel" in known["algorithm.loss"].choices
    assert known["rollout.antithetic"].kind == "switch"
    assert known["run.time_limit_minutes"].optional
    assert ("alignment: fits the prompt, by the built-in model's CLIP", "alignment") in choices_of(known["rewards"])


def test_rewards_with_weights_and_lists_of_prompts():
    config = parse_settings(
        TrainConfig, {"rewards": ["alignment", {"name": "brightness", "weight": 0.5}], "prompts": ["a fox"]}
    )
    shown = values_of(config)
    assert shown["rewards"] == ["alignment", "{name: brightness, weight: 0.5}"]
    assert shown["prompts"] == "[a fox]"
    assert read_form(shown) == config


@pytest.mark.parametrize(
    ("entered", "kind", "said"),
    [
        ({"optimizer.lr": 5}, ConfigError, "optimizer.lr=5.0: input should be less than or equal to 1."),
        ({"run.rounds": 2.5}, ConfigError, "run.rounds=2.5"),
        ({"run.rounds": "many"}, ConfigError, "run.rounds='many' is not a number."),
        ({"rewards": ["jpeg_compresibility"]}, ConfigError, "did you mean jpeg_compressibility"),
        ({"rewards": []}, ConfigError, "rewards"),
        ({"rewards": ["{name: "]}, ConfigError, "is not readable"),
        ({"prompts": "no-such-file.txt"}, MissingFileError, "neither a file nor a built-in set"),
        ({"rollout.batch_size": 30, "rollout.branches": 8}, ConfigError, "not divisible"),
        ({"name": "../x"}, ConfigError, "name='../x'"),
        ({"evaluation.least": "{a"}, ConfigError, "evaluation.least"),
    ],
)
def test_what_is_wrong_is_said(entered, kind, said):
    with pytest.raises(kind) as found:
        read_form(values_of(TrainConfig()) | entered)
    assert said in str(found.value)


def test_code_of_the_user_is_not_run_by_the_page(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('this ran')\n")
    config = read_form(values_of(TrainConfig()) | {"rewards": [f"{tmp_path}/mine.py:reward"]})
    assert config.rewards[0].label == "reward"


def test_numbers_that_may_be_left_out_are_written():
    known = {field.key: field for field in fields()}
    assert [known[key].is_written for key in ("sampler.eta", "run.rounds", "model.variant")] == [True, False, False]
    shown = values_of(parse_settings(TrainConfig, {"sampler": {"guidance": 2.5}}))
    assert (shown["sampler.guidance"], shown["sampler.eta"]) == ("2.5", "")
    assert read_form(shown | {"sampler.eta": "0.5"}).sampler.eta == 0.5
    assert read_form(shown).sampler.eta is None


def test_fields_left_empty_are_the_defaults():
    config = read_form(values_of(TrainConfig()) | {"run.rounds": None, "sampler.guidance": None, "run.time_limit_minutes": ""})
    assert config == TrainConfig()


def test_what_follows_from_other_fields_follows_them():
    shown = values_of(TrainConfig())
    assert read_form(shown | {"algorithm.kl_coefficient": 0}) == TrainConfig(leash=0), "0 is off, as the form says"
    assert read_form(shown | {"algorithm.dense_every": 1}).rollout.branches == 1
    assert read_form(values_of(TrainConfig.published())) == TrainConfig.published()
    with pytest.raises(ConfigError, match="needs a weight to start from"):
        read_form(shown | {"algorithm.kl_coefficient": 0, "algorithm.kl_target": 0.2})
    branched = TrainConfig(lr=6.5e-4, batch_size=128, branches=8, algorithm={"loss": "nft"})
    for config in (branched, TrainConfig(algorithm={"loss": "nft"})):
        assert read_form(values_of(config)) == config, "a loss of finished images is taken with the numbers that are shown"


def test_starts(tmp_path):
    assert start_from("*default", {}) == TrainConfig()
    assert start_from("*demo", {}) == load_config(DEMO)
    assert start_from("*published", {}) == TrainConfig.published()
    assert start_from("*nft", {}) == TrainConfig(algorithm={"loss": "nft"})
    assert list(STARTS) == ["*default", "*nft", "*demo", "*published"]
    (tmp_path / "config.yaml").write_text(TrainConfig(name="mine", seed=7).dump())
    assert start_from("mine", {"mine": tmp_path}) == TrainConfig(seed=7)


def test_the_plan_counts():
    changes = {"run": {"rounds": 75}, "rollout": {"batch_size": 128}, "evaluation": {"every": 15}, "rewards": ["composition"]}
    config = parse_settings(TrainConfig, changes)
    assert plan(config).startswith(
        "75 rounds of 128 pictures, rewarded for composition: 9,600 pictures scored, and 6 evaluations"
    )
    assert "2 evaluations" in plan(parse_settings(TrainConfig, {"evaluation": {"every": 0}}))


def test_errors_name_the_fields_label():
    assert in_form_words("optimizer.lr=5.0: too large.\nlora.rank=0: too small.") == (
        "Learning rate: optimizer.lr=5.0: too large.\nlora.rank=0: too small."
    )


WINDOWS = st.one_of(
    st.just("all"),
    st.builds("{}:{}".format, st.sampled_from(["first", "last"]), st.integers(1, 999)),
    st.lists(st.integers(0, 999), min_size=1, max_size=6, unique=True),
)


@settings(max_examples=40, deadline=None)
@given(window=WINDOWS)
def test_a_window_of_noisy_steps_is_the_same_typed_in_a_file_and_in_the_form(window):
    wanted = window if isinstance(window, str) else tuple(window)
    typed = load_config(None, [f"sampler.noisy_steps={window}"])
    assert typed.sampler.noisy_steps == wanted
    assert parse_settings(TrainConfig, read_yaml(typed.dump())) == typed
    assert read_form({"sampler.noisy_steps": values_of(typed)["sampler.noisy_steps"]}).sampler == typed.sampler


@pytest.mark.parametrize(
    "text", ["first", "first:0", "last:-1", "1", "0:2", "none", "", "[]", "[-1]", "[0, 0]", "[0.5]", "[a]", "true"]
)
def test_what_is_no_window_is_said(text):
    with pytest.raises(ConfigError, match=r"^sampler\.noisy_steps") as error:
        load_config(None, [f"sampler.noisy_steps={text}"])
    assert any(words in str(error.value) for words in ("first:1, or a list", "0 or more", "twice", "valid integer"))
