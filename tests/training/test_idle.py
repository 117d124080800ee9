"""Settings without effect are said, and those of the shipped configurations all have one."""

from pathlib import Path

import pytest

from rlcm.training.build import checked
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.idle import _RULES, idle_settings

CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))


def test_nothing_is_said_of_the_defaults():
    assert idle_settings(TrainConfig()) == idle_settings(TrainConfig.published()) == []


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_nothing_is_said_of_what_is_shipped(file):
    assert idle_settings(load_config(file)) == []


@pytest.mark.parametrize(
    ("idle", "needed"),
    [
        ("algorithm.nft_beta=2.5", "algorithm.loss=nft"),
        ("algorithm.noise_levels=2", "algorithm.loss=awm"),
        ("algorithm.rebel_eta=0.5", "algorithm.loss=rebel"),
        ("algorithm.divergence_limit=0.5", "algorithm.loss=divergence_ppo"),
        ("algorithm.dense_lambda=0.5", "algorithm.dense_every=1"),
        ("algorithm.clip_range=0.5", "algorithm.loss=ppo_clip"),
        ("algorithm.advantage=batch", "algorithm.loss=ppo_clip"),
        ("algorithm.normalise_std=false", "algorithm.loss=ppo_clip"),
        ("algorithm.stat_buffer_size=64", "algorithm.loss=ppo_clip"),
        ("algorithm.consistency_distance=l2", "algorithm.consistency_coefficient=0.1"),
        ("algorithm.consistency_schedule=linear", "algorithm.consistency_coefficient=0.1"),
        ("rollout.branch_schedule=last", "rollout.branches=2"),
        ("evaluation.patience=1", "evaluation.every=1"),
    ],
)
def test_what_has_no_effect_is_said_until_it_has_one(idle, needed):
    plain = ["rollout.branches=1", "rollout.images_per_prompt=2", "evaluation.every=0"]
    plain += ["rewards=[alignment]", "algorithm.loss=reward_backprop"] if needed == "algorithm.loss=ppo_clip" else []
    said = idle_settings(load_config(None, [*plain, idle]))
    assert len(said) == 1
    assert said[0].startswith(f"{idle} has no effect: it is for ")
    assert idle_settings(load_config(None, [*plain, idle, needed])) == []
    assert said[0] in checked(load_config(None, [*plain, idle])).notes


def test_floors_without_an_evaluation_on_the_way_have_no_effect():
    given = ["evaluation.every=0", "evaluation.least={judge.right: 0.9}"]
    assert idle_settings(load_config(None, given)) == [
        "evaluation.least='{judge.right: 0.9}' has no effect: it is for evaluation.every above 0, or evaluation.final=best"
    ]
    for needed in ("evaluation.every=5", "evaluation.final=best"):
        assert idle_settings(load_config(None, [*given, needed])) == []


@pytest.mark.parametrize("loss", ["nft", "awm", "reward_backprop"])
def test_a_loss_without_actions_has_no_old_policy_to_choose(loss):
    settings = ["rollout.branches=1", "rewards=[alignment]", f"algorithm.loss={loss}", "algorithm.kl_coefficient=0"]
    (said,) = idle_settings(load_config(None, [*settings, "rollout.images_per_prompt=2", "algorithm.old_policy=learning"]))
    assert said.startswith("algorithm.old_policy=learning has no effect")


def test_every_rule_names_settings():
    fields = {name for _, names, _ in _RULES for name in names}
    assert all(hasattr(getattr(TrainConfig(), name.split(".")[0]), name.split(".")[1]) for name in fields)
