"""What cannot fit is refused before a run is begun, by a setting, its value, what it takes and a value that fits."""

import re

import pytest
import torch
from tiny_runs import lcm_pipeline, tiny_config, tiny_denoiser, tiny_policy

from rlcm.doctor.machine import memory
from rlcm.errors import ConfigError
from rlcm.policy.policy import AdapterSettings, check_targets
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.fitting import check_images, check_memory, memory_need
from rlcm.training.trainer import Trainer

IMAGE = 4 * 3 * 16 * 16
"""Bytes of one image of the tiny model."""


@pytest.fixture
def give(monkeypatch):
    """Return a function that says how much memory the machine has."""
    return lambda size: monkeypatch.setattr("rlcm.training.fitting.available_memory", lambda device: size)


def remedy(error):
    """Return the setting and the value that an error recommends."""
    found = re.search(r"^([\w.-]+)=.* use (?:[\w.]+=)?(\d+)", str(error.value))
    assert found, error.value
    return found[1], int(found[2])


def test_images_that_memory_cannot_hold(give):
    give(100 * IMAGE)
    denoiser = tiny_denoiser()
    check_images("--n", 100, denoiser)
    with pytest.raises(ConfigError, match=r"^--n=101: images of 16x16 pixels take 0\.0 GB of main memory, .*use 50 or less\.$"):
        check_images("--n", 101, denoiser)
    with pytest.raises(ConfigError, match="make smaller images by "):
        check_images("rollout.batch_size", 400, denoiser, multiple=200)
    with pytest.raises(ConfigError, match="on each of 2 processes"):
        check_images("rollout.batch_size", 201, denoiser, 0.5, where=" on each of 2 processes")


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"rollout": {"batch_size": 600_000}}, "rollout.batch_size"),
        ({"rollout": {"batch_size": 600_000, "branches": 4, "images_per_prompt": 2}}, "rollout.batch_size"),
        ({"evaluation": {"images": 900_000}}, "evaluation.images"),
        ({"evaluation": {"images": 300_000, "grid": 300_000}}, "evaluation.grid"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_and_its_remedy_fits(give, tmp_path, changes, setting):
    give(2**30)
    policy = tiny_policy()
    config = tiny_config(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        check_memory(policy, policy.denoiser, config)
    name, value = remedy(error)
    assert name == setting
    group, _, key = name.partition(".")
    small = {**changes, group: {**changes[group], key: value, "sample_batch_size": 8} if group == "rollout" else {key: value}}
    check_memory(policy, policy.denoiser, tiny_config(tmp_path, **small))


def test_batches_that_cannot_be_computed(give, tmp_path):
    policy = tiny_policy()
    config = tiny_config(tmp_path, rollout={"batch_size": 64}, run={"micro_batch_size": 1_000_000})
    need = memory_need(policy.denoiser, config)
    fits = need.total - need.weights
    give(fits)
    check_memory(policy, policy.denoiser, config)
    give(fits // 8)
    with pytest.raises(ConfigError, match=r"an estimated .* The results stay the same") as error:
        check_memory(policy, policy.denoiser, config)
    name, value = remedy(error)
    assert name == "run.micro_batch_size"
    check_memory(policy, policy.denoiser, tiny_config(tmp_path, rollout={"batch_size": 64}, run={"micro_batch_size": value}))


def test_more_than_a_round_has_counts_as_what_it_has(tmp_path):
    policy = tiny_policy()
    large = tiny_config(tmp_path, run={"micro_batch_size": 1_000_000}, rollout={"sample_batch_size": 1_000_000})
    assert memory_need(policy.denoiser, large).total == memory_need(policy.denoiser, tiny_config(tmp_path)).total


def test_nothing_is_written_by_a_run_that_is_refused(give, tmp_path):
    give(100_000)
    with pytest.raises(ConfigError, match=r"evaluation\.images=90000"):
        Trainer(tiny_config(tmp_path / "runs", evaluation={"images": 90_000}), model=lcm_pipeline(), rewards=[len])
    assert not (tmp_path / "runs").exists()


def test_the_doctor_says_so_of_the_whole_run(give, tmp_path):
    give(2**30)
    policy = tiny_policy()
    found = memory(policy, tiny_config(tmp_path, rollout={"batch_size": 600_000}))
    assert not found.ok
    assert found.remedy.startswith("rollout.batch_size=600000: ")


def test_a_rank_that_no_layer_can_have():
    network = torch.nn.ModuleDict(
        {"to_q": torch.nn.Linear(48, 32), "to_k": torch.nn.Linear(8, 48), "out": torch.nn.Linear(99, 99)}
    )
    check_targets(network, AdapterSettings(rank=32))
    with pytest.raises(ConfigError, match=r"lora\.rank=33 is more than .* use 1 \.\. 32"):
        check_targets(network, AdapterSettings(rank=33))


@pytest.mark.parametrize(
    "change",
    [
        "rollout.batch_size=1000000000000",
        "rollout.batch_size=1180591620717411303424",
        "rollout.branches=1000000000000",
        "rollout.images_per_prompt=1000000000000",
        "rollout.sample_batch_size=1000000000000",
        "run.micro_batch_size=1000000000000",
        "run.rounds=1180591620717411303424",
        "run.timeout_seconds=1e300",
        "run.time_limit_minutes=.inf",
        "evaluation.images=1000000000000",
        "evaluation.seed=1180591620717411303424",
        "sampler.steps=1001",
        "sampler.guidance=.nan",
        "sampler.guidance=-3",
        "lora.rank=1000000000000",
        "lora.alpha=1e300",
        "model.height=1000000000000",
        "model.decode_batch_size=1000000000000",
        "algorithm.inner_epochs=1000000000000",
        "optimizer.betas=[1, 1]",
        "optimizer.weight_decay=1e300",
        f"name={'x' * 300}",
    ],
)
def test_what_nobody_can_mean_is_refused_where_it_is_read(change):
    key = change.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}"):
        load_config(None, [change])


@pytest.mark.parametrize(
    "change",
    [
        "rollout.batch_size=100000",
        "run.rounds=100000",
        "run.micro_batch_size=100000",
        "run.time_limit_minutes=1e5",
        "evaluation.images=50000",
        "evaluation.seed=4294967296",
        "model.height=4096",
        "algorithm.clip_range=1000",
        "optimizer.max_grad_norm=1e30",
        "sampler.steps=1000",
    ],
)
def test_large_values_that_somebody_means_are_taken(change):
    assert load_config(None, [change]) != TrainConfig()
