"""What an error says to type works as it is typed, whatever stands in the values: each remedy is taken from its message and run."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlcm.errors import MissingFileError, UsageError
from rlcm.rewards.commands import parse_rewards
from rlcm.settings import leaves
from rlcm.studies.evaluation.sets import prompt_sets
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.prompts import load_prompts
from rlcm.yaml_text import write_yaml

ODD = [
    "a red fox, studio light", "a fox #1", "a fox: red", "it's \"red\"", "[a fox] (red)", "{a: b}", "a 'b' [c", "0012", "null", "yes",
    "ü – 狐 🦊", "two\nlines", "$HOME `x` !", "back\\slash", "a; b & c | d > e", "-n", "*", "100%", "a\u2028b", "…",
]  # fmt: skip


def message_of(call):
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def typed_after(message, mark):
    """Return the words that a shell makes of what the message says to type behind a mark."""
    lexer = shlex.shlex(message.partition(mark)[2], posix=True, punctuation_chars="")
    lexer.whitespace_split, lexer.commenters = True, ""
    return re.sub(r"[.?;,]$", "", lexer.get_token())


def prompts_of(override):
    return load_prompts(load_config(None, [override]).prompts).prompts


@pytest.mark.parametrize("text", ODD)
def test_a_prompt_in_place_of_a_file(text):
    message = message_of(lambda: load_prompts(load_config(None, [f"prompts={text}"]).prompts))
    assert prompts_of(typed_after(message, "goes into a list: ")) == (text,)
    message = message_of(lambda: load_prompts(text, "evaluation.prompts"))
    found = load_config(None, [typed_after(message, "goes into a list: ")])
    assert found.evaluation.prompts == (text,)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(str.strip))
def test_any_prompt_in_place_of_a_file(text):
    # What begins with ~ or has a slash in it is a path.
    assume(not (Path(text).exists() or text.startswith("~") or "/" in text))
    message = message_of(lambda: load_prompts(text))
    assert prompts_of(typed_after(message, "goes into a list: ")) == (text,)


@pytest.mark.parametrize("text", ["[a: b: c]", "[it's, 'x]", "[#1 fox]", "[a] [b]", '["]'])
def test_a_prompt_in_brackets(text):
    message = message_of(lambda: load_config(None, [f"prompts={text}"]))
    assert prompts_of(typed_after(message, "in brackets is written as ")) == (text,)


@pytest.mark.parametrize("name", ["my prompts.txt", "it's.JSONL", "a, b #1 [x].txt", "ü 狐.json", "$(x).txt"])
def test_a_file_nearby(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in here").mkdir()
    (tmp_path / "in here" / name).write_text(
        '"a fox"' if name.endswith("L") else '["a fox"]' if name.endswith("n") else "a fox\n"
    )
    message = message_of(lambda: load_prompts("in here"))
    assert prompts_of(typed_after(message, "give a file in it: such as ")) == ("a fox",)
    message = message_of(lambda: load_prompts(f"in here/x{name}"))
    assert prompts_of(typed_after(message, "Did you mean ")) == ("a fox",)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("p.v2", "a fox\n", r"rename it to (\S+\.txt)\."),
        ("p", '["a fox"]', r"let its name end in (\.json),"),
        ("p.txt", '{"prompt": "a fox"}\n{"prompt": "a fox"}', r"(\.jsonl) for one object a line"),
        ("p.json", '{"prompt": "a fox"}\n{"prompt": "a fox"}', r"let its name end in (\.jsonl)\."),
    ],
)
def test_a_file_of_another_kind(tmp_path, name, content, pattern):
    (tmp_path / name).write_text(content)
    ending = re.search(pattern, message_of(lambda: load_prompts(tmp_path / name)))[1]
    new = tmp_path / (ending if ending[0] != "." else f"new{ending}")
    (tmp_path / name).rename(new)
    assert set(load_prompts(new).prompts) == {"a fox"}


@pytest.mark.parametrize(
    "name", ["mine.py:f", "my file.py:f", "a, b.py:f", "it's.py:f", "x#1 #2.py:f", "[x].py:f", "C:/x y.py:f", "http://host:1"]
)
def test_one_reward_in_place_of_a_list(name):
    for key in ("rewards", "evaluation.held_out"):
        message = message_of(lambda key=key: load_config(None, [f"{key}={write_yaml([name], flow=True)[1:-1]}"]))
        found = load_config(None, [typed_after(message, "write a list, such as ")])
        rewards = found.rewards if key == "rewards" else found.evaluation.held_out
        assert [reward.name for reward in rewards] == [name]


def test_one_value_in_place_of_a_list():
    message = message_of(lambda: load_config(None, ["rewards={name: brightness, args: {target: 0}}"]))
    found = load_config(None, [typed_after(message, "write a list, such as ")])
    assert found.rewards[0].args == {"target": 0}
    message = message_of(lambda: load_config(None, ["lora.target_modules=to_out.0"]))
    assert load_config(None, [typed_after(message, "write a list, such as ")]).lora.target_modules == ("to_out.0",)
    for typed, names in (
        ("jpeg_compressibility, sharpness", ["jpeg_compressibility", "sharpness"]),
        ("brightness,ocr", ["brightness", "ocr"]),
    ):
        message = message_of(lambda typed=typed: load_config(None, [f"rewards={typed}"]))
        found = load_config(None, [typed_after(message, "write a list, such as ")])
        assert [reward.name for reward in found.rewards] == names
    assert "write a list" not in message_of(lambda: load_config(None, ["optimizer.betas=0.9"]))  # which would not do either


def test_a_word_without_a_key():
    message = message_of(lambda: load_config(None, ["red"]))
    assert load_config(None, [typed_after(message, "key=value, such as ")]).optimizer.lr == 1e-4
    word = typed_after(message, "goes into quotes, such as ")
    assert load_config(None, [word]).sampler.negative_prompt == "blurry, low quality"


@pytest.mark.parametrize("name", ["run", "my run", "it's #1", "[x], y"])
def test_a_run_or_a_file_nearby_in_place_of_a_configuration(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.yaml").write_text("seed: 3\n")
    (tmp_path / name / "other.yaml").write_text("seed: 3\n")
    message = message_of(lambda: load_config(name))
    go_on, repeat = (shlex.split(typed) for typed in re.findall("`(.*?)`", message))
    assert go_on == ["rlcm", "train", "--resume", name]
    assert load_config(repeat[2], repeat[3:]) == TrainConfig(seed=3, name="NEW")
    hint = typed_after(message_of(lambda: load_config(f"{name}/otter.yaml")), "did you mean ")
    assert load_config(hint).seed == 3


def test_a_key_nearby():
    for key in [key for key, _ in leaves(TrainConfig)]:
        message = message_of(lambda key=key: load_config(None, [f"{key}x=1"]))
        assert key in re.split(r" or |[ ?]", message.partition("did you mean ")[2]), message


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.dense_every=1", "rollout.branches=4", "rollout.batch_size=64", "algorithm.advantage=batch"],
        ["model.quantisation=int8", "run.sharding=fsdp2"],
        ["rollout.batch_size=6", "rollout.images_per_prompt=4", "rollout.branches=1"],
        ["rollout.batch_size=8", "rollout.branches=4", "algorithm.minibatches=3"],
    ],
)
def test_settings_that_do_not_fit_together(overrides):
    message = message_of(lambda: load_config(None, overrides)).rpartition(";")[2]
    remedies = re.findall(r"\b[a-z_]+\.[a-z_]+=\w+", message)
    remedies += [f"rollout.batch_size={number}" for number in re.findall(r"multiple of (\d+)", message)]
    remedies += [f"algorithm.minibatches={number}" for number in re.findall(r"1 \.\. (\d+)", message)]
    assert remedies
    for remedy in remedies:
        load_config(None, [*overrides, remedy])


def test_numbers_and_texts_in_a_file(tmp_path):
    def message(text):
        (tmp_path / "c.yaml").write_text(text)
        return message_of(lambda: load_config(tmp_path / "c.yaml"))

    assert "without quotes" in message("optimizer: {eps: '1e-4'}")
    (tmp_path / "c.yaml").write_text("optimizer: {eps: 1e-4}")
    assert load_config(tmp_path / "c.yaml").optimizer.eps == 1e-4
    for remedy, text in zip(
        re.search(r"write (\S+) for none, or (\S+) in quotes", message("model: {path: ~}")).groups(), ("", "~"), strict=True
    ):
        (tmp_path / "c.yaml").write_text(f"model: {{path: {remedy}}}")
        assert load_config(tmp_path / "c.yaml").model.path == text


def test_rewards_on_the_command_line():
    message = message_of(lambda: parse_rewards(["{name: ["]))
    assert parse_rewards([typed_after(message, "write it like ")])[0].weight == 2


def test_prompts_for_an_evaluation(tmp_path):
    for name in ("a b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "it's.txt").write_text("a fox\n")
    with pytest.raises(
        MissingFileError, match=r"--prompts='a red fox, studio light' is neither .*Prompts of your own go into a file"
    ):
        prompt_sets(TrainConfig(), True, ["a red fox, studio light"], 4)
    sets = prompt_sets(TrainConfig(), True, [f"one={tmp_path}/a b/it's.txt", f"{tmp_path}/c/it's.txt"], 4)
    assert [group.name for group in sets] == ["train", "one", "it's"]
