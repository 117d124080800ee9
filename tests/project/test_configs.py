"""Every shipped configuration: it loads, names what exists, and runs two rounds on a tiny random model of its classes."""

import pytest
import torch
import yaml
from shipped_configs import FLOW_CONFIGS, ROOT, TINY, redness, tiny

from rlcm.doctor import diagnose
from rlcm.pipelines import restrictions, unpinned
from rlcm.rewards.build import BUILT_IN
from rlcm.rewards.settings import is_address
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.prompts import load_prompts
from rlcm.training.trainer import Trainer

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"), key=lambda path: path.stem)
NAMES = [path.stem for path in CONFIGS if "rollout" in yaml.safe_load(path.read_text(encoding="utf-8"))]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the configurations' prompt files are found from


def test_every_configuration_has_its_tiny_model():
    assert sorted(NAMES) == sorted(TINY)


@pytest.mark.parametrize("name", TINY)
def test_loads_and_names_what_exists(name):
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# "), "says in a comment what it is for"
    config = load_config(f"configs/{name}.yaml")
    assert len(load_prompts(config.prompts)) >= 8
    assert all(reward.name in BUILT_IN or is_address(reward.name) for reward in config.rewards)
    assert config.sampler.steps >= 2
    assert config.rollout.sample_batch_size <= config.rollout.batch_size
    hub = config.model.path.count("/") == 1
    assert ("# Licence: " in text) == hub
    restricted = " ".join(restrictions(config.model))
    assert all(
        word not in restricted or word in text for word in ("Stability AI Community", "Krea 2 Community", "NVIDIA", "CC BY-NC")
    )
    assert unpinned(config.model) == [], "a Hub id is pinned to a commit, and so are its LoRAs"


@pytest.mark.parametrize("name", TINY)
def test_two_rounds_on_a_tiny_model(name, tmp_path):
    trainer = Trainer(tiny(name, tmp_path), rewards=[redness])
    before = [p.detach().clone() for p in trainer.parts.policy.parameters]
    for number in (1, 2):
        metrics = trainer.round()
        assert metrics["round"] == number
        assert metrics["reward_std"] > 0
        assert metrics["skipped_updates"] == 0
        assert metrics["grad_norm"] > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.parts.policy.parameters, strict=True))
    assert not (tmp_path / "run").exists()


def test_the_built_in_configuration_is_what_runs_without_one():
    assert load_config("configs/builtin.yaml") == TrainConfig()


def test_ddpo_is_the_same_run_with_another_model_and_sampler_and_plain_trajectories():
    rlcm, ddpo = (load_config(f"configs/{name}.yaml") for name in ("builtin", "builtin-ddpo"))
    differing = {key for key in TrainConfig.model_fields if getattr(rlcm, key) != getattr(ddpo, key)}
    assert differing == {"model", "sampler", "rollout", "algorithm", "run"}
    assert ddpo.run.model_copy(update={"time_limit_minutes": None, "save_every": rlcm.run.save_every}) == rlcm.run
    assert (ddpo.sampler.scheduler, ddpo.sampler.steps, ddpo.sampler.eta) == ("ddim", 50, 1.0)
    assert (ddpo.rollout.branches, ddpo.rollout.batch_size) == (1, rlcm.rollout.batch_size)
    assert ddpo.algorithm == rlcm.algorithm.model_copy(update={"advantage": "prompt_statistics"})


def test_the_doctor_passes_branched_rollouts_on_a_tiny_model(tmp_path):
    config = tiny("builtin", tmp_path)
    assert config.rollout.branches > 1
    assert diagnose(config, rewards=[redness]).verdict() == "ok"


def test_the_doctor_passes_ddpo_on_a_tiny_model(tmp_path):
    config = tiny("builtin-ddpo", tmp_path)
    diagnosis = diagnose(config, rewards=[redness])
    assert diagnosis.verdict() == "ok"
    sampler = next(finding for finding in diagnosis.findings if finding.name == "scheduler replay")
    # With alphas that end at 1 the last of the 50 steps draws no noise.
    assert (sampler.numbers["steps"], sampler.numbers["actions"]) == (50, 49)


PUBLISHED = {
    # name: (lr, H, images an optimiser step, optimiser steps a round, rounds, buffer, minimum, rank, alpha, prompts)
    "compressibility": (1e-4, 8, 16, 10, 100, 16, 16, 16, 32, 398),
    "incompressibility": (1e-4, 8, 16, 10, 100, 16, 16, 16, 32, 398),
    "aesthetic": (1e-4, 8, 32, 10, 100, 32, 16, 8, 8, 45),
    "alignment": (4e-4, 16, 160, 6, 118, 32, 16, 16, 32, 135),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_published_settings(task):
    config = load_config(f"configs/lcm-dreamshaper-v7-{task}.yaml")
    lr, steps, together, updates, rounds, buffer, minimum, rank, alpha, prompts = PUBLISHED[task]
    algorithm, optimizer = config.algorithm, config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.schedule, optimizer.max_grad_norm) == ("adam", lr, "linear", 5)
    assert (config.sampler.steps, config.sampler.guidance, config.sampler.original_inference_steps) == (steps, 8.0, 50)
    assert (algorithm.minibatches, config.rollout.batch_size) == (updates, together * updates)
    assert (algorithm.stat_buffer_size, algorithm.stat_min_count, config.run.rounds) == (buffer, minimum, rounds)
    assert (algorithm.clip_range, algorithm.log_prob_reduction, algorithm.advantage_clip) == (1e-4, "mean", 10)
    assert (config.lora.rank, config.lora.alpha, algorithm.inner_epochs) == (rank, alpha, 1)
    assert len(load_prompts(config.prompts)) == len(set(load_prompts(config.prompts).prompts)) == prompts


@pytest.mark.parametrize("task", PUBLISHED)
def test_ddpo_counterparts_differ_in_model_and_sampler(task):
    rlcm, ddpo = (load_config(f"configs/{name}-dreamshaper-v7-{task}.yaml") for name in ("lcm", "ddpo"))
    differing = {key for key in TrainConfig.model_fields if getattr(rlcm, key) != getattr(ddpo, key)}
    assert differing == {"model", "sampler", "rollout", "run"}
    assert ddpo.rollout.model_copy(update={"sample_batch_size": rlcm.rollout.sample_batch_size}) == rlcm.rollout
    assert ddpo.run.model_copy(update={"micro_batch_size": rlcm.run.micro_batch_size}) == rlcm.run
    assert (ddpo.sampler.scheduler, ddpo.sampler.steps, ddpo.sampler.eta, ddpo.sampler.guidance) == ("ddim", 50, 1.0, 5.0)


@pytest.mark.parametrize("name", [name for name in FLOW_CONFIGS if name.endswith("80gb")])
def test_the_doctor_passes_the_flow_matching_models_on_tiny_ones(name, tmp_path):
    assert diagnose(tiny(name, tmp_path), rewards=[redness]).verdict() == "ok"


def test_a_conditioning_of_classes_reaches_the_pixel_model(tmp_path):
    trainer = Trainer(tiny("pixel-consistency", tmp_path), rewards=[redness])
    assert trainer.parts.conditioning["labels"].tolist() == [207, 250, 259]
