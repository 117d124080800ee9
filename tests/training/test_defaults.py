"""The default, what follows from other settings, the paper's settings, and the short names of Python."""

import pytest

from rlcm import TrainConfig, load_config
from rlcm.builtin import PUBLISHED
from rlcm.errors import ConfigError
from rlcm.learning.algorithm import AlgorithmSettings
from rlcm.policy.policy import AdapterSettings
from rlcm.settings import declared, leaves
from rlcm.training.config import checked, parse_settings
from rlcm.training.defaults import SHORT, changed, without_following
from rlcm.training.explaining import names_of


def test_a_run_without_a_word_is_the_default():
    assert load_config() == TrainConfig()
    assert TrainConfig().rollout.branches > 1
    assert TrainConfig().algorithm.kl_coefficient > 0


def test_the_papers_settings():
    paper = TrainConfig.published()
    assert paper == load_config(PUBLISHED)
    assert (paper.sampler.steps, paper.rollout.batch_size, paper.rollout.branches) == (8, 160, 1)
    assert (paper.algorithm.kl_coefficient, paper.algorithm.advantage) == (0, "prompt_statistics")
    assert (paper.optimizer.name, paper.optimizer.lr, paper.optimizer.max_pace) == ("adam", 1e-4, 1)
    lcm = load_config("configs/lcm-dreamshaper-v7-compressibility.yaml")
    assert (paper.algorithm, paper.optimizer, paper.lora) == (lcm.algorithm, lcm.optimizer, lcm.lora)
    assert paper.sampler.calls == lcm.sampler.calls
    assert paper.run.rounds == lcm.run.rounds
    changed = TrainConfig.published(rounds=3, rollout={"batch_size": 32}, algorithm={"minibatches": 2})
    assert (changed.run.rounds, changed.rollout.batch_size, changed.rollout.branches) == (3, 32, 1)


@pytest.mark.parametrize("short", SHORT)
def test_short_names(short):
    group, _, key = SHORT[short].partition(".")
    value = getattr(getattr(TrainConfig(), group), key)
    value = 8 if value is None else value * 2 if short != "leash" else 0.5
    found = TrainConfig(**{short: value})
    assert getattr(getattr(found, group), key) == value
    assert getattr(getattr(TrainConfig(**{short: value}, name="x"), group), key) == value
    with pytest.raises(ConfigError, match=rf"{short} is short for {group}\.{key}, which is given, too"):
        TrainConfig(**{short: value, group: {key: value}})
    with pytest.raises(ConfigError, match="is not a setting"):  # files and the command line have one name for each
        load_config(None, [f"{short}={value}"])


def test_a_group_of_the_papers_is_changed_by_a_dict_or_its_class():
    for lora in ({"rank": 8}, AdapterSettings(rank=8)):
        found = TrainConfig.published(lora=lora)
        assert (found.lora.rank, found.lora.alpha) == (8, TrainConfig.published().lora.alpha)
    with pytest.raises(ConfigError, match="rounds is short for"):
        TrainConfig.published(rounds=2, run={"rounds": 3})


def test_short_names_are_of_settings():
    assert set(SHORT.values()) <= set(names_of(TrainConfig))
    assert not set(SHORT) & {name for name, _ in leaves(TrainConfig)}
    assert all(declared(TrainConfig, name.split(".")) is not None for name in SHORT.values())


def test_a_group_beside_a_short_name_of_it():
    found = TrainConfig(rounds=3, run={"save_every": 7})
    assert (found.run.rounds, found.run.save_every) == (3, 7)
    assert TrainConfig(rank=2, lora=TrainConfig(lora={"alpha": 4}).lora).lora.alpha == 4


def test_what_follows_from_no_leash():
    for config in (
        TrainConfig(leash=0),
        TrainConfig(leash=0.0, lr=1e-3),
        load_config(None, ["algorithm.kl_coefficient=0"]),
        TrainConfig(algorithm=AlgorithmSettings(kl_coefficient=0)),
    ):
        assert config.algorithm.kl_target is None
        assert config.optimizer.max_pace == 1
    assert load_config(None, ["algorithm.kl_target=null"]).optimizer.max_pace == 1
    assert load_config(None, ["algorithm.kl_target=0.1"]).optimizer.max_pace == TrainConfig().optimizer.max_pace


def test_what_follows_from_plain_trajectories():
    assert load_config(None, ["algorithm.loss=reward_backprop"]).rollout.branches == 1
    assert load_config(None, ["algorithm.dense_every=1", "rollout.batch_size=32"]).rollout.branches == 1
    with pytest.raises(ConfigError, match=r"set rollout\.branches=1, not 4"):
        load_config(None, ["algorithm.dense_every=1", "rollout.branches=4"])


@pytest.mark.parametrize("loss", ["awm", "nft"])
def test_what_follows_from_a_loss_of_finished_images(loss):
    def found(*changes):
        config = load_config(None, [f"algorithm.loss={loss}", *changes])
        rollout = config.rollout
        return config.optimizer.lr, rollout.batch_size, rollout.branches, rollout.images_per_prompt

    assert found() == (3e-3, 64, 1, 4)
    assert found("optimizer.lr=1e-4", "rollout.batch_size=16") == (1e-4, 16, 1, 4)
    assert found("rollout.branches=8") == (3e-3, 64, 8, 1)
    assert found("rollout.branches=1") == found("rollout.images_per_prompt=4") == found()
    assert found("rollout.batch_size=6") == (3e-3, 6, 1, 1)
    assert found("rollout.images_per_prompt=16") == (3e-3, 64, 1, 16)
    assert found("rollout.branches=8", "rollout.images_per_prompt=2") == (3e-3, 64, 8, 2)
    assert load_config(None, [f"algorithm.loss={loss}", "algorithm.kl_coefficient=0"]).optimizer.max_pace == 1
    assert TrainConfig(lr=1e-4, algorithm={"loss": loss}).optimizer.lr == 1e-4
    assert TrainConfig(optimizer=TrainConfig(lr=1e-4).optimizer, algorithm={"loss": loss}).optimizer.lr == 1e-4


def test_what_follows_was_not_given():
    """Another change of such a configuration may change it again."""
    forward, unleashed = TrainConfig(algorithm={"loss": "nft"}), TrainConfig(leash=0)
    for config, other in (
        (forward, {"algorithm": {"loss": "ppo_clip"}}),
        (forward, {"branches": 8}),
        (unleashed, {"leash": 0.1}),
    ):
        given = without_following(config.model_dump(exclude_unset=True))
        assert "lr" not in given.get("optimizer", {})
        assert "max_pace" not in given.get("optimizer", {})
        assert checked(config) == config
        anew = parse_settings(TrainConfig, changed(given, other))
        for alone in ("rollout", "optimizer", "algorithm"):
            taken = TrainConfig(
                **{alone: getattr(config, alone)}, **({"optimizer": {"max_pace": 1}} if alone == "algorithm" else {})
            )
            assert checked(taken) == taken, "a group of it has its values elsewhere, too"
        first = {} if "algorithm" in other or config is unleashed else {"algorithm": {"loss": "nft"}}
        assert anew == TrainConfig(**first, **other)


def test_what_was_given_is_kept_beside_what_follows():
    for changes in ({"lr": 1e-4}, {"branches": 2, "rollout": {"images_per_prompt": 4}}, {"batch_size": 16}):
        given = TrainConfig(algorithm={"loss": "nft"}, **changes)
        left = without_following(given.model_dump(exclude_unset=True))
        assert parse_settings(TrainConfig, left) == given
        assert all(left[name][key] == value for name, key, value in _spelt(changes))


def _spelt(changes):
    for name, value in changes.items():
        if isinstance(value, dict):
            yield from ((name, key, one) for key, one in value.items())
        else:
            yield (*SHORT[name].split("."), value)


def test_what_was_written_is_read_as_it_was(tmp_path):
    forward = (
        TrainConfig(algorithm={"loss": "nft"}),
        TrainConfig(lr=6.5e-4, batch_size=128, branches=8, algorithm={"loss": "nft"}),
    )
    for number, config in enumerate(
        (TrainConfig(), TrainConfig(leash=0), TrainConfig.published(), TrainConfig(rounds=2), *forward)
    ):
        (tmp_path / f"{number}.yaml").write_text(config.dump())
        assert load_config(tmp_path / f"{number}.yaml") == config


def test_wrong_values_from_python_are_our_errors():
    with pytest.raises(ConfigError, match=r"^run\.rounds=0: input should be greater than or equal to 1\.$"):
        TrainConfig(rounds=0)
    with pytest.raises(ConfigError, match="roundz is not a setting; did you mean"):
        TrainConfig(roundz=3)
    with pytest.raises(ConfigError, match="run=3: run is a group"):
        TrainConfig(run=3, rounds=3)
    with pytest.raises(ConfigError, match="is not divisible"):
        TrainConfig(batch_size=6)
