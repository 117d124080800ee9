"""Every shipped configuration: it loads, names what exists, and runs two rounds on a tiny random model of its classes."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from tiny_pipelines import flux, pixel, sana, schedule, sdxl, stable_diffusion

from rlcm.builtin import DEMO
from rlcm.doctor import diagnose
from rlcm.pipelines import unpinned
from rlcm.pipelines.quantisation import PACKAGES
from rlcm.rewards.build import BUILT_IN
from rlcm.rewards.settings import is_address
from rlcm.training.config import TrainConfig, load_config
from rlcm.training.prompts import load_prompts
from rlcm.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"), key=lambda path: path.stem)
NAMES = [path.stem for path in CONFIGS if "rollout" in yaml.safe_load(path.read_text(encoding="utf-8"))]


def latent_consistency() -> Any:
    scheduler = diffusers.LCMScheduler(**schedule(steps_offset=1, clip_sample=False))
    return stable_diffusion(scheduler, diffusers.LatentConsistencyModelPipeline, time_cond_proj_dim=8)


def euler(**changes: Any) -> Any:
    return diffusers.EulerDiscreteScheduler(**schedule(steps_offset=1, **changes))


# What `model.path` of each configuration holds, as far as its classes and its scheduler's settings go.
TINY = {
    "builtin": latent_consistency,
    "builtin-ddpo": lambda: stable_diffusion(diffusers.DDIMScheduler(**schedule(steps_offset=1, clip_sample=False))),
    **{
        f"ddpo-dreamshaper-v7-{task}": lambda: stable_diffusion(
            diffusers.DDIMScheduler(**schedule(steps_offset=1, clip_sample=False))
        )
        for task in ("aesthetic", "alignment", "compressibility", "incompressibility")
    },
    "flux-schnell-80gb": lambda: flux(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), guidance_embeds=False),
    "lcm-dreamshaper-v7-aesthetic": latent_consistency,
    "lcm-dreamshaper-v7-alignment": latent_consistency,
    "lcm-dreamshaper-v7-compressibility": latent_consistency,
    "lcm-dreamshaper-v7-incompressibility": latent_consistency,
    "pixel-consistency": lambda: pixel(1000),
    "sana-sprint-0.6b": sana,
    "sana-sprint-1.6b": sana,
    "sd-turbo": lambda: stable_diffusion(euler(timestep_spacing="trailing")),
    **{f"sdxl-lcm-lora-{memory}gb": lambda: sdxl(euler()) for memory in (12, 16, 24)},
    "sdxl-turbo": lambda: sdxl(
        diffusers.EulerAncestralDiscreteScheduler(**schedule(steps_offset=1, timestep_spacing="trailing"))
    ),
    "three-rewards": latent_consistency,
}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the configurations' prompt files are found from


def tiny(name: str, folder: Path) -> TrainConfig:
    """Return a configuration on a tiny model: its sampler, learning and memory settings, few images, a simple reward."""
    TINY[name]().save_pretrained(folder / "model")
    config = load_config(f"configs/{name}.yaml")
    if config.model.quantisation != "none":
        pytest.importorskip(PACKAGES[config.model.quantisation])
    size = 16 if name.startswith("flux") else None  # FLUX has a size of its own, 256 pixels on this model
    model = {"path": str(folder / "model"), "revision": None, "variant": None, "loras": (), "height": size, "width": size}
    rollout = config.rollout
    group = rollout.branches * rollout.images_per_prompt
    images = 6 if group == 1 else 2 * group
    changes: dict[str, Any] = {
        "output": str(folder),
        "model": config.model.model_copy(update={**model, "precision": "fp32", "device": "cpu"}),
        "rollout": rollout.model_copy(update={"batch_size": images}),
        "algorithm": config.algorithm.model_copy(update={"minibatches": min(config.algorithm.minibatches, 2)}),
        "evaluation": config.evaluation.model_copy(update={"images": 4}),
        "prompts": load_prompts(config.prompts).prompts[:3],
        "run": config.run.model_copy(update={"rounds": 2, "tracker": "none"}),
    }
    return TrainConfig.model_validate(config.model_copy(update=changes).model_dump())


def redness(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))


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
    assert not hub or unpinned(config.model) == [], "a Hub id is pinned to a commit, and so are its LoRAs"


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
    assert load_config("configs/builtin.yaml") == load_config(DEMO)


def test_ddpo_is_the_same_run_with_another_model_and_sampler_and_plain_trajectories():
    rlcm, ddpo = (load_config(f"configs/{name}.yaml") for name in ("builtin", "builtin-ddpo"))
    differing = {key for key in TrainConfig.model_fields if getattr(rlcm, key) != getattr(ddpo, key)}
    assert differing == {"model", "sampler", "rollout", "algorithm", "run"}
    assert ddpo.run.model_copy(update={"time_limit_minutes": None, "save_every": rlcm.run.save_every}) == rlcm.run
    assert (ddpo.sampler.scheduler, ddpo.sampler.steps, ddpo.sampler.eta) == ("ddim", 50, 1.0)
    assert (ddpo.rollout.branches, ddpo.rollout.batch_size) == (1, rlcm.rollout.batch_size)
    published = TrainConfig().algorithm.model_copy(update={"kl_coefficient": rlcm.algorithm.kl_coefficient})
    assert ddpo.algorithm == published.model_copy(update={"kl_target": rlcm.algorithm.kl_target})


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


def test_a_conditioning_of_classes_reaches_the_pixel_model(tmp_path):
    trainer = Trainer(tiny("pixel-consistency", tmp_path), rewards=[redness])
    assert trainer.parts.conditioning["labels"].tolist() == [207, 250, 259]
