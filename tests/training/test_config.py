"""The configuration: every mistake is one ConfigError that names the setting, and what is written is read back."""

import string

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlcm.errors import ConfigError, MissingFileError, UsageError
from rlcm.training import other_names
from rlcm.training.config import TrainConfig, load_config, parse_settings
from rlcm.training.explaining import names_of


def of(*overrides):
    return load_config(None, overrides)


def test_defaults_and_file(tmp_path):
    assert load_config() == TrainConfig()
    (tmp_path / "c.yaml").write_text("optimizer:\n  lr: 1e-4\nrewards: [sharpness]\nprompts: [a fox, a bee]\n")
    found = load_config(tmp_path / "c.yaml", ["run.rounds=7"])
    assert (found.optimizer.lr, found.run.rounds, found.prompts) == (1e-4, 7, ("a fox", "a bee"))
    assert [reward.label for reward in found.rewards] == ["sharpness"]
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == TrainConfig()


def test_what_is_written_is_read_back(tmp_path):
    config = of("rollout.branch_schedule=[0.5, 0.25, 0.25]", "prompts=[füchse]", "rewards=[{name: brightness, weight: -2}]")
    (tmp_path / "c.yaml").write_text(config.dump(), encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", r"optimiser is not a setting; did you mean optimizer\?"),
        ("optimizer.learning=1", r"optimizer\.learning is not a setting; it may be name, lr, "),
        ("optimizer.betass=1", r"optimizer\.betass is not a setting; did you mean optimizer\.betas\?"),
        ("lora.rnk=4", r"lora\.rnk is not a setting; did you mean lora\.rank\?"),
        ("learning_rate=1", r"learning_rate is not a setting; did you mean optimizer\.lr\?"),
        ("optimizer.learning_rate=1", r"optimizer\.learning_rate is not a setting; did you mean optimizer\.lr\?"),
        ("round=5", r"round is not a setting; did you mean run\.rounds\?"),
        (
            "model.loras=[{path: x, weight: 2}]",
            r"model\.loras\.0\.weight is not a setting; did you mean model\.loras\.0\.scale\?",
        ),
        ("rewards=[{nme: x, name: sharpness}]", r"rewards\.0\.nme is not a setting; did you mean rewards\.0\.name\?"),
        ("model.loras=[{path: x, scal: 2}]", r"model\.loras\.0\.scal is not a setting; did you mean model\.loras\.0\.scale\?"),
        ("str=1", "str is not a setting"),
        ("lora.tuple=1", r"lora\.tuple is not a setting"),
        ("a[0]=1", r"a\[0\] is not a setting"),
        ("zzz=1", "zzz is not a setting; it may be name, output"),
        ("a..b=1", r"'a\.\.b' is not a setting; write a name such as"),
    ],
)
def test_unknown_keys_name_the_nearest(override, message):
    with pytest.raises(ConfigError, match=message):
        of(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.rounds=many", r"run\.rounds='many': input should be a valid integer"),
        ("run.rounds=0", r"run\.rounds=0: input should be greater than or equal to 1"),
        ("run.rounds=1.5", r"run\.rounds=1\.5"),
        ("optimizer.lr=-1", r"optimizer\.lr=-1"),
        ("optimizer.lr=.nan", r"optimizer\.lr=nan"),
        ("optimizer.lr=1e-320", r"optimizer\.lr=1e-320: input should be 0, or from 1\.2e-38 to 3\.4e\+38 in size"),
        ("rewards=[{name: sharpness, weight: 1e300}]", r"rewards\.0\.weight=1e300: input should be 0, or from"),
        ("algorithm.importance_cap=0.5", r"algorithm\.importance_cap=0\.5: input should be greater than or equal to 1"),
        (
            "algorithm.loss=pppo",
            r"algorithm\.loss='pppo': input should be 'ppo_clip', 'divergence_ppo', 'reinforce', 'rebel', 'awm', ",
        ),
        ("lora=4", r"lora=4: "),
        ("prompts=[{a: 5}]", r"^prompts\.0=\{'a': 5\}: input should be a text; one with a colon"),
        ("rewards=[]", r"rewards=\[\]"),
        ("rewards=[sharpness, sharpness]", "two rewards are labelled sharpness"),
        ("name=a/b", r"name='a/b'"),
        ("name=..", r"name='\.\.'"),
        ("seed=2020-13-45", r"seed='2020-13-45'"),
        ("seed=99999999999999999999", r"seed=9+"),
        ("optimizer.betas=[0.9]", r"optimizer\.betas"),
        ("rollout.antithetic=maybe", r"rollout\.antithetic='maybe'"),
    ],
)
def test_wrong_values_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        of(override)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        of("lora.rnk=1", "run.rounds=0")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollout.batch_size=6", "rollout.images_per_prompt=4", "rollout.branches=1"],
            r"rollout\.batch_size=6 is not divisible.*multiple of 4",
        ),
        (["rollout.batch_size=12", "rollout.images_per_prompt=2", "rollout.branches=4"], "multiple of 8"),
        (["rollout.batch_size=8", "rollout.branches=4", "algorithm.minibatches=3"], r"minibatches=3 is more than the 2.*use 1"),
        (["algorithm.stat_min_count=40"], r"stat_min_count=40 is above .*stat_buffer_size=32"),
        (["algorithm.loss=reinforce", "algorithm.minibatches=2"], "reinforce holds for one update"),
        (
            ["algorithm.kl_target=0.1", "algorithm.kl_coefficient=0"],
            r"kl_target=0\.1 needs a weight.*kl_coefficient.*max_pace=1",
        ),
        (
            ["optimizer.max_pace=3", "algorithm.kl_coefficient=0"],
            r"optimizer\.max_pace=3 .*set algorithm\.kl_target, or this to 1",
        ),
        (
            ["algorithm.advantage=group", "rollout.branches=1"],
            r"advantage=group compares images.*images_per_prompt or rollout\.branches",
        ),
        (["rollout.branches=3", "rollout.batch_size=9", "rollout.antithetic=true"], "even number"),
    ],
)
def test_settings_that_do_not_fit_together(overrides, message):
    with pytest.raises(ConfigError, match=message):
        of(*overrides)


def test_forms_of_overrides():
    found = of(
        "optimizer.lr=1e-4",
        "optimizer.betas=[0.8, 0.99]",
        "name=007.x",
        "prompts=[a fox, 'a: b']",
        "rollout.antithetic=false",
        "evaluation.prompts=null",
        "lora={rank: 3}",
        "lora.alpha=6",
        "model.path=a=b",
        "sampler.negative_prompt=",
    )
    assert found.optimizer.lr == 1e-4
    assert found.optimizer.betas == (0.8, 0.99)
    assert found.name == "007.x"
    assert found.prompts == ("a fox", "a: b")
    assert found.rollout.antithetic is False
    assert found.evaluation.prompts is None
    assert (found.lora.rank, found.lora.alpha) == (3, 6)
    assert found.model.path == "a=b"
    assert found.sampler.negative_prompt == ""
    assert of("optimizer.lr=1E-3", "optimizer.lr=2e-3").optimizer.lr == 2e-3  # in order


@pytest.mark.parametrize("override", ["lr", "=3", ""])
def test_overrides_without_key_or_value(override):
    with pytest.raises(ConfigError, match="is not of the form key=value"):
        of(override)


def test_an_override_cannot_go_into_a_value():
    with pytest.raises(ConfigError, match="lora is not a group of settings"):
        of("lora=4", "lora.rank=4")
    with pytest.raises(
        ConfigError, match=r"prompts is not a group of settings; set it as a whole\. It is now prompts=mine\.txt$"
    ):
        of("prompts=mine.txt", "prompts.0=a fox")


def test_an_entry_of_a_list_has_its_number_for_a_name():
    found = of(
        "rewards=[{name: brightness, weight: 2}, sharpness]", "rewards.0.weight=3", "rewards.1.weight=0.5", "rewards.1.label=s"
    )
    assert [(one.name, one.weight, one.label) for one in found.rewards] == [
        ("brightness", 3, "brightness"),
        ("sharpness", 0.5, "s"),
    ]
    assert of("rewards=[sharpness, brightness]", "rewards.1=colourfulness").rewards[1].name == "colourfulness"
    assert of("rewards=[composition]", "rewards.0.args.graded=true").rewards[0].args == {"graded": True}
    assert of("model.loras=[x]", "model.loras.0.scale=0.5").model.loras[0].scale == 0.5
    assert of("prompts=[a fox, a car]", "prompts.1=3").prompts == ("a fox", "3")
    with pytest.raises(
        ConfigError,
        match=r"rewards has no entry 1; set it as a whole\. It is now rewards='\[\{name: brightness, weight: 2\}\]'$",
    ):
        of("rewards=[{name: brightness, weight: 2}]", "rewards.1.weight=3")
    for place in ("x", "-1", "1.0", "²"):
        with pytest.raises(ConfigError, match=r"rewards has no entry"):
            of("rewards=[{name: brightness}]", f"rewards.{place}.weight=3")
    for place in ("00", "1" * 5000):
        with pytest.raises(ConfigError, match=rf"rewards has no entry {place}; set it as a whole"):
            of("rewards=[{name: brightness}]", f"rewards.{place}.weight=3")
    with pytest.raises(ConfigError, match=r"model\.loras has no entry 0; set it as a whole\.$"):
        of("model.loras.0.scale=3")


def test_the_entries_of_a_list_that_nobody_sets_are_those_of_the_default():
    assert of("rewards.0.weight=3").rewards == [TrainConfig().rewards[0].model_copy(update={"weight": 3.0})]
    assert of("rewards.0.args.graded=true", "rewards.0.weight=2").rewards[0].args == {"graded": True}
    with pytest.raises(
        ConfigError, match=r"rewards has no entry 1; set it as a whole\. It is now rewards='\[\{name: composition"
    ):
        of("rewards.1.weight=3")
    one = of("rewards=[sharpness]", "rewards.0={weight: 2}").rewards[0]
    assert (one.name, one.weight) == ("sharpness", 2)


def test_an_alias_of_yaml_is_not_changed_by_the_place_of_another(tmp_path):
    file = tmp_path / "q.yaml"
    file.write_text("rewards: &r [{name: sharpness}]\nevaluation: {held_out: *r}\n")
    found = load_config(file, ["rewards.0.weight=2"])
    assert (found.rewards[0].weight, found.evaluation.held_out[0].weight) == (2, 1)


def test_one_value_in_place_of_a_list_is_shown_as_one():
    with pytest.raises(ConfigError, match=r"write a list, such as rollout\.branch_schedule='\[0\.5\]'"):
        of("rollout.branch_schedule=0.5")


@pytest.mark.parametrize(
    "content",
    [
        b"- a\n- b",
        b"just text",
        b"3",
        b"a: [",
        b"a: !!int ''",
        b"a: !!bool x",
        b"a: !!timestamp x",
        b"a: !!python/object:os.system x",
        b"\xff\xff",
        b"\x00",
        b"[" * 5000,
    ],
)
def test_files_that_are_no_mapping(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.yaml' (is not readable YAML|must hold)"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("path", ["nowhere.yaml", ".", "nul\0", "long" * 100])
def test_files_that_are_not_there(path):
    with pytest.raises(UsageError, match=r"does not exist|is a folder|is not a path"):
        load_config(path)


KEYS = st.sampled_from(
    [
        "lora",
        "rank",
        "optimizer",
        "lr",
        "betas",
        "rewards",
        "name",
        "args",
        "rollout",
        "branches",
        "branch_schedule",
        "prompts",
        "model",
        "loras",
        "path",
        "run",
        "seed",
        "evaluation",
        "sampler",
        "timesteps",
        "algorithm",
        "loss",
        "str",
        "[",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates() | st.binary(max_size=3) | KEYS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers() | st.none(), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)


def accepts_or_refuses(call):
    try:
        found = call()
    except (ConfigError, MissingFileError) as error:
        found = error
    assert isinstance(found, TrainConfig) or str(found)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_nest_of_values_is_accepted_or_refused(values):
    accepts_or_refuses(lambda: parse_settings(TrainConfig, values))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.text(max_size=30)
    | st.text(alphabet=string.printable, max_size=40)
    | st.dictionaries(KEYS, VALUES, max_size=3).map(lambda value: yaml.dump(value))
    | st.builds("{}: {}".format, KEYS, st.text(alphabet="!&*[]{}:-'\" \n09abeinstx.", max_size=20))
)
def test_any_text_is_accepted_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(text, encoding="utf-8", errors="replace")
    accepts_or_refuses(lambda: load_config(file))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.builds("{}.{}={}".format, KEYS, KEYS, st.text(max_size=10)) | st.text(max_size=15), max_size=3))
def test_any_overrides_are_accepted_or_refused(overrides):
    accepts_or_refuses(lambda: load_config(None, overrides))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["rollout.batch_size=1", "rollout.branches=1"], r"rollout\.batch_size=1 leaves a round one image"),
        (["rewards=[{name: brightness, weight: 0}]"], "all weights are 0"),
        (["rewards=[{name: brightness, weight: 0}, {name: sharpness, weight: -0.0}]"], "all weights are 0"),
        (
            ["evaluation.held_out=[brightness, brightness]"],
            r"evaluation\.held_out=.* two rewards are labelled brightness; .*`label`\.$",
        ),
        (["rewards=[brightness, brightness]"], r"rewards=.* two rewards are labelled brightness; .*`label`\.$"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, changes)


def test_one_image_a_round_will_do_where_the_gradient_is_the_rewards_own():
    load_config(
        None, ["rollout.batch_size=1", "rollout.branches=1", "algorithm.loss=reward_backprop", "algorithm.kl_target=null"]
    )


@pytest.mark.parametrize("made", [set, frozenset, dict.fromkeys])
def test_a_list_of_settings_has_an_order(made):
    with pytest.raises(ConfigError, match=r"prompts=.*: input should be a list"):
        TrainConfig(prompts=made(["a fox", "a car"]))
    assert TrainConfig(prompts=("a fox", "a car")).prompts == ("a fox", "a car")


@pytest.mark.parametrize("path", [{"run": {"rounds": 3}}, 5, [], b"my.yaml"])
def test_a_configuration_is_a_path(path):
    with pytest.raises(ConfigError, match=r"config=.* is a (dict|int|list|bytes); give a path, and settings as changes"):
        load_config(path)


def test_names_of_other_programs_lead_to_settings_that_there_are():
    known = names_of(TrainConfig)
    assert set(other_names._OURS) <= set(known)
    theirs = [name for names in other_names._OURS.values() for name in names]
    assert len(theirs) == len(set(theirs))
    assert not {name.rpartition(".")[2] for name in known} & set(theirs), "what is a setting is found without them"
    assert other_names.ours(["CFG_scale"], known) == "sampler.guidance"
    assert other_names.ours(["cfg_scale"], ["seed"]) is None
    assert other_names.ours(["learning_rate"], ["updates", "lr"]) == "lr"
    for key, meant in {
        "optimizer.epsilon": "optimizer.eps", "algorithm.num_epochs": "algorithm.inner_epochs", "optimizer.batch": "rollout.batch_size",
        "evaluation.prompts_file": "evaluation.prompts", "lora.r": "lora.rank",
        "beta": "algorithm.kl_coefficient", "use_wandb": "run.tracker", "fp16": "model.precision", "random_seed": "seed",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=rf"^{key} is not a setting; did you mean {meant}\?"):
            of(f"{key}=1")
    with pytest.raises(ConfigError) as refused:
        of("rewards=[{name: sharpness, model_name: x}]", "model.loras=[{path: x, model_path: y}]")
    assert "model.path" not in str(refused.value)
