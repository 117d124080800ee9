"""What a person types is what a setting gets: texts as they are, numbers as numbers, in files, overrides and Python alike."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlcm.cli.work.models import config_of
from rlcm.distillation.distill import DistillConfig
from rlcm.errors import ConfigError, MissingFileError
from rlcm.training.config import TrainConfig, load_config, parse_settings, read_values
from rlcm.training.prompts import load_prompts
from rlcm.training.values import assignment


def of(*overrides):
    return load_config(None, overrides)


def from_file(folder, text):
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return load_config(folder / "c.yaml")


ODD = [
    "blurry #1 worst", "0012", "1e5", "yes", "no", "null", "~", "a: b", "2026-11-28", "1:30", "1_000", "1.10", "[a", "{a: 1}",
    "'quoted'", '"quoted"', "- a", "*a", "&a", "!a", "a, b", "#", " ", "ü – 狐", "a\nb", "\t", "\\n", "%d", "a=b", "<<", "=",
]  # fmt: skip


@pytest.mark.parametrize(
    "changes", [TrainConfig(), {"run": {"rounds": 2}}, [("run.rounds", 2)], 3, "run.rounds=2", None, ["run.rounds=2", None]]
)
def test_changes_are_a_list_of_texts(changes):
    with pytest.raises(ConfigError, match=r"changes of settings are a list of texts, such as \['run.rounds=200'"):
        load_config(None, changes)


def test_a_group_leaves_the_settings_that_it_does_not_name(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lora: {rank: 4}\noptimizer: {lr: 1.0e-4, betas: [0.5, 0.6]}\n")
    found = load_config(file, ["lora={alpha: 3}", "optimizer={lr: 2e-4}", "run={rounds: 7}", "run={save_every: 3}"])
    assert (found.lora.rank, found.lora.alpha) == (4, 3)
    assert (found.optimizer.lr, found.optimizer.betas) == (2e-4, (0.5, 0.6))
    assert (found.run.rounds, found.run.save_every) == (7, 3)
    # What is no group of settings is set as a whole.
    args = ["rewards=[{name: jpeg_compressibility, args: {quality: 90}}]", "rewards=[{name: jpeg_compressibility}]"]
    assert of(*args).rewards[0].args == {}


@pytest.mark.parametrize("text", ODD)
def test_a_text_setting_takes_what_is_typed(text):
    assert of(f"sampler.negative_prompt={text}").sampler.negative_prompt == text
    assert of(f"prompts={text}").prompts == text
    assert of(f"run.tracker_project={text}").run.tracker_project == text
    assert of(f"model.path={text}").model.path == text


@pytest.mark.parametrize(
    "name", ["0012", "1e5", "yes", "null", "2026-11-28", "1_000", "1.10", "007.x", "-1", "0x1F", "nan", ""]
)
def test_a_name_is_what_is_typed(name):
    assert of(f"name={name}").name == name


@pytest.mark.parametrize(
    "text", ["0012", "no", "Yes", "1_000", "1.10", "1e5", "1:30", "2026-11-28", "0x1F", ".5", "true", ".inf"]
)
def test_an_unquoted_text_of_a_file_is_as_it_is_written(tmp_path, text):
    found = from_file(
        tmp_path,
        f"run: {{tracker_project: {text}}}\nsampler:\n  negative_prompt: {text}\nmodel: {{revision: {text}}}\nprompts: [{text}, a]\n"
        f"evaluation: {{best: {text}, prompts: {text}}}\nrewards: [{{name: brightness, label: {text}}}]\n",
    )
    assert found.run.tracker_project == found.sampler.negative_prompt == found.model.revision == text
    assert (found.prompts, found.evaluation.best, found.evaluation.prompts) == ((text, "a"), text, text)
    assert found.rewards[0].label == text


def test_null_leaves_out_what_may_be_left_out_and_is_refused_elsewhere(tmp_path):
    found = from_file(
        tmp_path, "model: {revision: null, variant: ~}\nevaluation: {prompts: }\nname:\nrun: {time_limit_minutes: null}\n"
    )
    assert (found.model.revision, found.model.variant, found.evaluation.prompts, found.name) == (None, None, None, "")
    assert of("model.revision=null", "evaluation.prompts=~", "run.time_limit_minutes=").model.revision is None
    for text in ("null", "~"):
        with pytest.raises(
            ConfigError, match=f"negative_prompt={text}: input should be a text; write '' for none, or \"{text}\""
        ):
            from_file(tmp_path, f"sampler: {{negative_prompt: {text}}}")
    assert from_file(tmp_path, 'sampler: {negative_prompt: "null"}').sampler.negative_prompt == "null"


def test_a_group_with_nothing_below_it_has_its_defaults(tmp_path):
    assert from_file(tmp_path, "run:\n  # rounds: 3\nlora:\nseed: 0\n") == TrainConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=true", r"^optimizer\.lr=true: input should be a valid number, not true or false"),
        ("optimizer.lr=yes", r"^optimizer\.lr=yes: input should be a valid number, not true"),
        ("optimizer.lr='1e-4'", r"^optimizer\.lr='1e-4': input should be a valid number, written in digits and without quotes"),
        ("optimizer.lr=1e-4 ×", r"valid number, written in digits"),
        ("optimizer.lr=nan", r"valid number, written in digits"),
        ("optimizer.lr=.inf", r"finite number"),
        ("optimizer.lr=1e999", r"finite number"),
        ("optimizer.lr=", r"^optimizer\.lr=None: input should be a valid number"),
        ("run.rounds=3.7", r"^run\.rounds=3\.7: input should be a valid integer"),
        ("run.rounds=1:30", r"^run\.rounds='1:30': input should be a valid integer"),
        ("run.rounds=2026-11-28", r"^run\.rounds='2026-11-28'"),
        ("run.rounds=on", r"^run\.rounds=on: input should be a valid integer, not true"),
        ("run.rounds=.inf", r"^run\.rounds=inf: "),
        ("seed=0012", r"^seed='0012': input should be a valid integer, without a zero in front"),
        ("optimizer.lr=01", r"^optimizer\.lr='01': input should be a valid number, without a zero in front"),
        ("seed=0x", r"^seed='0x': input should be a valid integer, written in digits"),
        ("rollout.antithetic=1", r"^rollout\.antithetic=1: input should be true or false"),
        ("rollout.antithetic=0.0", r"input should be true or false"),
        ("rollout.antithetic='true'", r"^rollout\.antithetic='true': input should be true or false"),
        ("rollout.antithetic=y", r"^rollout\.antithetic='y': input should be true or false"),
        ("optimizer.betas=[true, 0.9]", r"^optimizer\.betas=\[true, 0\.9\]: input should be a valid number, not true"),
        ("evaluation.least={reward: yes}", r"^evaluation\.least=\{'reward': yes\}: input should be a valid number, not true"),
        ("evaluation.least.reward='1'", r"^evaluation\.least=.*: input should be a valid number, written"),
        ("sampler.timesteps=[999, '499']", r"^sampler\.timesteps=.*: input should be a valid number, written"),
        ("rewards=[{name: brightness, weight: true}]", r"^rewards\.0\.weight=true: input should be a valid number, not true"),
        ("rewards=[{name: brightness, normalise: 1}]", r"^rewards\.0\.normalise=1: input should be true or false"),
        ("lora={rank: 3, rank: 4}", r"^lora='\{rank: 3, rank: 4\}' is not readable: the key 'rank' stands twice"),
        ("rewards=[{name: ", r"^rewards='\[\{name: ' is not readable: "),
        ("algorithm.loss=no", r"^algorithm\.loss='no': input should be 'ppo_clip'"),
    ],
)
def test_what_is_no_number_or_truth_value_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        of(override)


def test_numbers_and_truth_values_as_people_write_them():
    found = of(
        "optimizer.lr=1e-4", "run.rounds=1e2", "rollout.batch_size=60.0", "seed=1_000", "lora.alpha=8", "run.time_limit_minutes=.5",
        "model.tf32=yes", "model.compile=True", "algorithm.normalise_std=off", "optimizer.betas=[0, .5]", "evaluation.least={0012: 1}",
        "algorithm.loss= rebel", "rollout.branches=2", "rollout.branch_schedule=uniform", "run.tracker='none'",
    )  # fmt: skip
    assert (found.optimizer.lr, found.run.rounds, found.rollout.batch_size, found.seed) == (1e-4, 100, 60, 1000)
    assert (found.lora.alpha, found.run.time_limit_minutes, found.model.tf32, found.model.compile) == (8.0, 0.5, True, True)
    assert (found.algorithm.normalise_std, found.optimizer.betas, found.evaluation.least) == (False, (0.0, 0.5), {"0012": 1.0})
    assert (found.algorithm.loss, found.rollout.branch_schedule, found.run.tracker) == ("rebel", "uniform", "none")


def test_python_is_held_to_the_same_rules():
    for values in (
        {"optimizer": {"lr": True}},
        {"optimizer": {"lr": "1e-4"}},
        {"rollout": {"antithetic": 1}},
        {"seed": "3"},
        {"seed": False},
    ):
        with pytest.raises(ConfigError, match="input should be"):
            TrainConfig(**values)
    assert TrainConfig(optimizer={"lr": 1}, rollout={"batch_size": 64.0}).optimizer.lr == 1.0


def test_arguments_of_rewards_keep_what_yaml_means(tmp_path):
    args = "{a: 1e-4, b: 3, c: no, d: null, e: '1', f: [1, {g: 2.50}], h: 0012, i: 2026-11-28, 1: x, j: {2: true}, k: 1_000}"
    expected = {
        "a": 1e-4, "b": 3, "c": False, "d": None, "e": "1", "f": [1, {"g": 2.5}], "h": "0012", "i": "2026-11-28", "1": "x",
        "j": {"2": True}, "k": 1000,
    }  # fmt: skip
    found = of(f"rewards=[{{name: brightness, args: {args}}}]")
    assert found.rewards[0].args == expected
    assert from_file(tmp_path, f"rewards: [{{name: brightness, args: {args}}}]") == found
    again = from_file(tmp_path, found.dump()).rewards[0].args
    assert again == expected
    assert all(type(again[key]) is type(value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\nname: a\nseed: 2",
            r"c\.yaml' is not readable YAML: the key 'seed' stands twice, in lines 1 and 3; keep one",
        ),
        ("run:\n  rounds: 3\n  tracker: none\n  rounds: 4", "the key 'rounds' stands twice, in lines 2 and 4"),
        (
            "rewards:\n- name: brightness\n  args:\n    target: 0\n    target: 1",
            "the key 'target' stands twice, in lines 4 and 5",
        ),
        ("optimizer: {lr: true}", r"optimizer\.lr=true: input should be a valid number"),
        (
            "optimizer: {lr: '1e-4'}",
            r"optimizer\.lr='1e-4': input should be a valid number, written in digits and without quotes",
        ),
    ],
)
def test_files_with_mistakes(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        from_file(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("run.rounds: 2", "    run: {rounds: 2}"),
        ("run: {rounds: 2}\nrun.save_every: 1", "    run: {rounds: 2, save_every: 1}"),
        ("run:\n  run.rounds: 2", "    run: {rounds: 2}"),
        ("model.revision: 1.10", "    model: {revision: 1.10}"),
        ("run.time_limit_minutes:\nrun.tracker: none", "    run: {time_limit_minutes: null, tracker: none}"),
        ("rewards:\n- name: brightness\n  args.target: 0.5", "    rewards: [{name: brightness, args: {target: 0.5}}]"),
        ("evaluation.least.reward: 1", "    evaluation: {least: {reward: 1}}"),
        ("run.rounds=2", "    run: {rounds: 2}"),
        ("# mine\nrun.rounds = 2  # few\nprompts=[a fox, b]", "    run: {rounds: 2}\n    prompts: [a fox, b]"),
        ("seed: 3\nrun.rounds=2", "    run: {rounds: 2}"),
        ("- run.rounds=2", "    run: {rounds: 2}"),
        ("seed:3", "    seed: 3"),
    ],
)
def test_a_file_written_as_the_command_line_is_answered_with_how_files_are_written(tmp_path, text, wanted):
    with pytest.raises(ConfigError, match=r"(for the command line; in a file write|with a colon and a space:)\n") as caught:
        from_file(tmp_path, text)
    remedy = str(caught.value).partition("\n")[2]
    assert remedy == wanted
    from_file(tmp_path, remedy)


def test_other_mistakes_beside_dots_are_said_first(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^run\.round is not a setting; did you mean run\.rounds\?\nrun\.round: keys with dots"
    ):
        from_file(tmp_path, "run.round: 2")
    with pytest.raises(ConfigError, match=r"must hold `key: value` lines at its top, not a text\.$"):
        from_file(tmp_path, "just words = nothing")


@pytest.mark.parametrize("value", [np.float64(1e-4), np.logspace(-5, -3, 3)[1], torch.tensor(1e-4), 1e-4])
def test_dotted_keys_are_answered_whatever_kind_of_number_they_have(value):
    with pytest.raises(
        ConfigError, match=r"optimizer\.lr.*: keys with dots .* in a file write\n    optimizer: \{lr: [\d.e-]+\}\n"
    ):
        parse_settings(TrainConfig, {"optimizer.lr": value, "output": Path("x"), "run.rounds": np.int64(1)})


def test_dots_in_keys_that_are_no_settings_are_left_alone(tmp_path):
    assert from_file(tmp_path, "rewards: [{name: brightness, args: {a.b: 1}}]").rewards[0].args == {"a.b": 1}
    assert from_file(tmp_path, "evaluation: {least: {a.b: 1}}").evaluation.least == {"a.b": 1.0}


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["rewards=‘[my.py:f]’"], ["rewards=[my.py:f]"]),
        (["rewards='[my.py:f]'"], ["rewards=[my.py:f]"]),
        (['rewards="[brightness, my.py:f]"'], ["rewards=[brightness, my.py:f]"]),
        (["rewards=“brightness”"], ["rewards=[brightness]"]),
        (["rewards=[‘brightness’]"], ['rewards=["brightness"]']),
        (["rewards=[{name: “brightness”}]"], ['rewards=[{name: "brightness"}]']),
        (["prompts='[\"a fox\"]'"], ['prompts=["a fox"]']),
        (["prompts=[“a fox”]"], ['prompts=["a fox"]']),
        (["'prompts=[a fox]'"], ["prompts=[a fox]"]),
        (["“seed=3”"], ["seed=3"]),
        (["seed=“3”"], ["seed=3"]),
        (["sampler.timesteps=‘[999]’"], ["sampler.timesteps=[999]"]),
        (["prompts=“a", "fox”"], ["prompts=[a fox]"]),
        (["seed=2", "prompts=[“a", "red", "fox”]", "name=x"], ['prompts=["a red fox"]']),
    ],
)
def test_quotes_that_came_along_are_named_and_the_value_is_printed_without_them(words, remedy):
    with pytest.raises(ConfigError, match="quotes") as caught:
        of(*words)
    assert shlex.split(str(caught.value).rpartition("; write ")[2]) == remedy
    of(*remedy)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("prompts: [“a fox”]", '"a fox"'),
        ("prompts: ‘[a fox]’", "[a fox]"),
        ("rewards: [„brightness“]", '"brightness"'),
        ("rewards: [{name: ‘brightness’}]", '"brightness"'),
        ("“seed”: 2", '"seed"'),
        ("seed: “3”", "3"),
        ("prompts: [“a fox, red”]", '"a fox"'),
    ],
)
def test_typographic_quotes_in_a_file_are_named(tmp_path, text, remedy):
    with pytest.raises(ConfigError, match=r"(?i)line 1 .*typographic") as caught:
        from_file(tmp_path, text)
    assert (f"write {remedy}, or " in str(caught.value)) or str(caught.value).endswith(f"such as {remedy}.")
    quoted = re.search(r"[„“‘].*?[”’“](?=[\]}:]|$)", text)
    if "a fox, red" not in text:
        from_file(tmp_path, text.replace(quoted[0], remedy))


def test_typographic_quotes_that_belong_to_a_text_stay(tmp_path):
    found = from_file(tmp_path, """prompts: ["“a fox”", 'says “hi”', “Hello” says the fox, “a” or “b”, ’tis, it’s]""")
    assert found.prompts == ("“a fox”", "says “hi”", "“Hello” says the fox", "“a” or “b”", "’tis", "it’s")
    assert from_file(tmp_path, found.dump()) == found
    (word,) = shlex.split(assignment("prompts", list(found.prompts)))
    assert of(word).prompts == found.prompts
    assert of("sampler.negative_prompt=“a”").sampler.negative_prompt == "“a”"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.sampled_from("“”‘’„\"'ab, :[]"), min_size=1, max_size=12))
def test_any_text_with_quotes_is_kept(tmp_path_factory, text):
    found = of(assignment_word("prompts", [text, "a"]))
    assert found.prompts == (text, "a")
    assert from_file(tmp_path_factory.getbasetemp(), found.dump()) == found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (".lr=1", r"^'\.lr' is not a setting; write optimizer\.lr=1$"),
        ("lr.=1", r"write optimizer\.lr=1$"),
        ("run..rounds=1", r"write run\.rounds=1$"),
        (".=1", r"^'\.' is not a setting; write a name such as"),
        (" =1", r"^' ' is not a setting; it may be name, "),
        ("OPTIMIZER.LR=1", r"^'OPTIMIZER\.LR' is not a setting; write optimizer\.lr=1$"),
        (
            "optimizer.lr\xa0=1",
            r"^'optimizer\.lr<U\+00A0>' is not a setting, since it has a no-break space \(U\+00A0\) in it; write",
        ),
        ("optimizer\u200b.lr=1", r"optimizer<U\+200B>\.lr.* zero width space \(U\+200B\) in it; write optimizer\.lr=1$"),
        ("run.rounds=２", r"it has a fullwidth digit two \(U\+FF12\) in it: write 2\.$"),
        ("optimizer.lr=1e–4", r"it has an en dash \(U\+2013\) in it: write 1e-4\.$"),
        ("optimizer.lr=\xa01", r"no-break space \(U\+00A0\) in it: write 1\.$"),
        ("rewards=[]", r"^rewards=\[\]: give at least 1 value\.$"),
        ("sampler.timesteps=[]", "give at least 1 value"),
        ("lora.target_modules=3", r"^lora\.target_modules=3: input should be a list\.$"),
        ("rewards=[3]", r"^rewards\.0=3: input should be a mapping, such as"),
        ("evaluation.least=3", "input should be a mapping"),
    ],
)
def test_keys_and_values_that_only_look_right_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        of(override)


@pytest.mark.parametrize("key", ["seed\xa0", "\u200bseed", "SEED", "Seed", "ｓｅｅｄ"])
def test_keys_of_a_file_that_only_look_right_are_named(tmp_path, key):
    with pytest.raises(ConfigError, match=r"is not a setting.*; did you mean seed\?$"):
        from_file(tmp_path, f"{key}: 2")
    with pytest.raises(ConfigError, match=r"with a colon and a space:\n    seed: 2$"):
        from_file(tmp_path, "seed:\xa02")


def test_names_that_are_no_settings_may_look_like_anything():
    assert of("evaluation.least.A =1", "evaluation.least.B\xa0=2").evaluation.least == {"A ": 1.0, "B\xa0": 2.0}
    assert of("prompts=[a – b, ２ foxes]", "sampler.negative_prompt=a\xa0b").prompts == ("a – b", "２ foxes")


def test_merge_keys_in_a_file(tmp_path):
    found = from_file(
        tmp_path, "evaluation: &e {grid: 4, every: 3}\nrollout: {batch_size: 8}\nrun: {rounds: 3}\nlora: {rank: 2}\n"
    )
    assert found.evaluation.grid == 4
    text = "rewards:\n- &r {name: brightness, args: {target: 0}}\n- {<<: *r, label: other, args: {target: 1}}\n"
    assert [reward.args for reward in from_file(tmp_path, text).rewards] == [{"target": 0}, {"target": 1}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_other_editors(tmp_path, encoding):
    (tmp_path / "c.yaml").write_bytes("seed: 3\r\nprompts: [ein Häschen]\r\n".encode(encoding))
    assert (load_config(tmp_path / "c.yaml").seed, load_config(tmp_path / "c.yaml").prompts) == (3, ("ein Häschen",))


def test_other_settings_have_the_types_of_their_own():
    values = read_values(None, ["data=0012", "output=yes", "lr=1e-4"], DistillConfig)
    found = parse_settings(DistillConfig, values)
    assert (found.data, found.output, found.lr) == ("0012", "yes", 1e-4)


def test_lists_of_prompts():
    assert of("prompts=[a fox, 'b: c', 0012, no]").prompts == ("a fox", "b: c", "0012", "no")
    assert of("prompts=['a red fox, studio light']").prompts == ("a red fox, studio light",)
    assert of("prompts=[draft] a fox").prompts == "[draft] a fox"
    with pytest.raises(ConfigError, match=r"is not readable: .*a text in brackets is written as prompts='\[\"\[a: b: c\]\"\]'"):
        of("prompts=[a: b: c]")
    with pytest.raises(ConfigError) as caught:
        of("prompts=[a fox #1, 'a dog', {red} frog]")
    remedy = str(caught.value).partition("a list of texts is written as ")[2].partition("; a text in brackets")[0]
    assert of(*shlex.split(remedy)).prompts == ("a fox #1", "a dog", "{red} frog")


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_any_text_is_taken_as_it_is_typed_and_kept(tmp_path_factory, text):
    found = of(f"sampler.negative_prompt={text}", f"run.tracker_project={text}", assignment_word("prompts", [text, "a"]))
    assert found.sampler.negative_prompt == found.run.tracker_project == text
    assert found.prompts == (text, "a")
    assert from_file(tmp_path_factory.getbasetemp(), found.dump()) == found


def assignment_word(key, value):
    (word,) = shlex.split(assignment(key, value))
    return word


def test_what_is_there_but_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("nowhere")
    for name, why in (
        ("pipe.yaml", "it is a pipe"),
        ("link.yaml", "it is a link that leads nowhere"),
        ("/dev/null", "it is a device"),
    ):
        path = tmp_path / name
        with pytest.raises(MissingFileError, match=rf"^config=.* cannot be read: {why}; save what it should hold as a file,"):
            load_config(path)
        with pytest.raises(MissingFileError, match=rf"^prompts=.* cannot be read: {why}; save what it should hold as a file,"):
            load_prompts(str(path))
    for name in ("pipe.yaml", "/dev/null"):
        with pytest.raises(MissingFileError, match=r"^config=.* cannot be read: it is a "):
            config_of(str(tmp_path / name))
    with pytest.raises(MissingFileError, match="does not exist"):
        load_config(tmp_path / "no.yaml")
    (tmp_path / "own.yaml").write_text("seed: 3")
    (tmp_path / "good.yaml").symlink_to("own.yaml")
    assert load_config(tmp_path / "good.yaml").seed == config_of(str(tmp_path / "good.yaml"))[0].seed == 3
