"""Runs with a window of noisy steps: what is an action, that ratios begin at 1, that they go on bit for bit, and bad input."""

import json

import diffusers
import pytest
import torch
from short_runs import metrics_of, without_times
from tiny_pipelines import flux
from tiny_runs import PROMPTS, brightness, lcm_pipeline, plain_rollout, tiny_config, tiny_denoiser, tiny_policy

from rlcm.errors import ConfigError, SamplerError
from rlcm.pipelines import ModelSettings, SamplerSettings, make_denoiser
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.policy.rollout import sample_latents
from rlcm.training.build import build
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.fitting import memory_need
from rlcm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("_no_report")


def flow_pipeline():
    """Return a tiny FLUX whose scheduler is deterministic, as all published ones are."""
    return flux(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


def red(images, prompts):
    return images[:, 0].mean((1, 2)).gt(0.5).float()


SIZE = {"height": 16, "width": 32}
FLOW = {"steps": 4, "guidance": None, "eta": 0.6, "noisy_steps": "first:2"}
RUNS = {
    "a window of flow matching": {"sampler": FLOW},
    "branches in a window": {
        "sampler": FLOW,
        "rollout": {"batch_size": 12, "branches": 3, "branch_schedule": "uniform"},
        "algorithm": {"advantage": "group"},
    },
    "dense rewards, a leash and GDPO": {
        "sampler": {**FLOW, "noisy_steps": [0, 2]},
        "algorithm": {"dense_every": 1, "kl_coefficient": 0.1, "multi_reward": "gdpo"},
    },
}


@pytest.mark.parametrize("case", RUNS)
def test_ratios_begin_at_1_and_a_run_goes_on_bit_for_bit(tmp_path, case):
    changes = RUNS[case]
    functions = [brightness, red] if "gdpo" in case.lower() else [brightness]
    config = tiny_config(tmp_path, optimizer={"lr": 1e-3}, model=SIZE, **changes)
    straight = Trainer(config, model=flow_pipeline(), rewards=functions, prompts=PROMPTS)
    assert straight.parts.policy.noisy_steps.tolist() == ([0, 2] if "GDPO" in case else [0, 1])
    assert straight.parts.policy.table.std[2:].any() == ("GDPO" in case)
    straight = straight.train()
    rows = metrics_of(straight)
    assert rows[0]["ratio_deviation_max"] < 1e-5
    assert all(row["grad_norm"] > 0 for row in rows)

    weights = (straight / "final" / WEIGHTS_NAME).read_bytes()
    # The first checkpoint is taken up by another process's trainer, as it were.
    for later in ("checkpoint-000002", "final"):
        for file in sorted((straight / later).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    wanted = rows[1]
    going_on = Trainer.resume(straight, model=flow_pipeline(), rewards=functions, prompts=PROMPTS)
    assert going_on.round_number == 1
    going_on.train()
    found = metrics_of(straight)
    assert len(found) == 2
    assert without_times([found[1]]) == without_times([wanted])
    assert (straight / "final" / WEIGHTS_NAME).read_bytes() == weights


def test_a_window_of_a_consistency_model_draws_and_learns_in_its_steps_alone():
    policy = tiny_policy(tiny_denoiser(4, noisy_steps=[1]))
    trajectory, conditioning = plain_rollout(policy)
    assert trajectory.steps.tolist() == [[1]] * 4
    # One draw of an image's stream for its first latent, and one for its only noisy step.
    seeds = [100, 101]
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    first, second = (torch.stack([torch.randn(policy.denoiser.latent_shape, generator=g) for g in streams]) for _ in range(2))
    rows = conditioning.take(torch.tensor([0, 1]))
    x = policy.denoiser.scale_noise(first)
    with torch.no_grad():
        for row, std in enumerate(policy.stds):
            x = policy.step(x, torch.full((2,), row), rows)[1] + std * second
            assert (std > 0) == (row == 1)
        assert torch.equal(sample_latents(policy.denoiser, policy.table, rows, seeds), x)


def test_a_last_step_that_explores_comes_on_top_of_the_window(tmp_path):
    config = tiny_config(tmp_path, sampler={"steps": 4, "guidance": 3.0, "noisy_steps": "last:1", "final_std": 0.2})
    parts = build(config, pipeline=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS)
    assert parts.policy.noisy_steps.tolist() == [2, 3]
    assert parts.evaluator.table.noisy_steps().tolist() == [2]
    alone = tiny_config(tmp_path, sampler={"steps": 4, "guidance": 3.0, "noisy_steps": [3], "final_std": 0.2})
    parts = build(alone, pipeline=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS)
    assert parts.policy.noisy_steps.tolist() == [3]
    assert not parts.evaluator.table.std.any()


def test_memory_is_estimated_for_the_states_that_are_learnt_from(tmp_path):
    def learning(window):
        config = tiny_config(tmp_path, sampler={"steps": 4, "guidance": 3.0, "noisy_steps": window}, rollout={"batch_size": 6})
        denoiser = tiny_denoiser(4, noisy_steps=window)
        Policy(denoiser, AdapterSettings(rank=4, alpha=8))
        return memory_need(denoiser, config).learning

    assert learning("first:1") < learning("all")
    assert learning([0, 1, 2, 3]) == learning("all")


def test_rewards_follow_gradients_through_steps_without_noise(tmp_path):
    def bright(images, prompts):
        return images.mean((1, 2, 3))

    bright.differentiable = True
    config = tiny_config(
        tmp_path,
        model=SIZE,
        sampler={**FLOW, "eta": 0, "noisy_steps": "all"},
        algorithm={"loss": "reward_backprop", "backprop_calls": 2, "kl_coefficient": 0.1, "stat_min_count": 1},
    )
    made = Trainer(config, model=flow_pipeline(), rewards=[bright], prompts=PROMPTS)
    assert not made.parts.policy.stds.count(0) - 4
    assert made.round()["grad_norm"] > 0


BAD = {
    "eta 0": ({"eta": 0}, {}, SamplerError, r"sampler\.eta=0 .*Use 0 < sampler\.eta <= 1 .*loss=reward_backprop"),
    "no noisy step in it": ({"noisy_steps": [3]}, {}, SamplerError, r"noisy_steps=\[3\]: none of these steps draws noise"),
    "a step that is not there": ({"noisy_steps": [4]}, {}, SamplerError, r"there is no step 4; the 4 steps .* are 0 \.\. 3"),
    "more than there are": ({"noisy_steps": "last:4"}, {}, SamplerError, r"use last:3 or less"),
    "a schedule of branches for other steps": (
        {"noisy_steps": "first:2"},
        {"branches": 2, "branch_schedule": [0.2, 0.3, 0.5]},
        ConfigError,
        r"branch_schedule=.*must hold 2 probabilities.*draw noise are \[0, 1\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_windows_are_refused_before_anything_is_sampled(tmp_path, case):
    sampler, rollout, error, message = BAD[case]
    config = tiny_config(tmp_path, sampler={**FLOW, "noisy_steps": "all", **sampler}, rollout=rollout, model=SIZE)
    with pytest.raises(error, match=message):
        build(config, pipeline=flow_pipeline(), rewards=[brightness], prompts=PROMPTS)
    flow_pipeline().save_pretrained(tmp_path / "model")
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "model")})})
    with pytest.raises(error, match=message):
        build(config, rewards=[brightness], prompts=PROMPTS)


@pytest.mark.parametrize("flag", [False, True])
def test_the_pipelines_own_images_come_out_at_both_ends_of_eta(flag):
    pipeline = flux(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, stochastic_sampling=flag))
    none = make_denoiser(pipeline, SamplerSettings(steps=4, eta=0), ModelSettings(**SIZE))
    assert not none.table.std.any()
    conditioning = none.encode(PROMPTS[:2])
    noise = torch.stack([torch.randn(none.latent_shape, generator=torch.Generator().manual_seed(s)) for s in (5, 6)])
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, stochastic_sampling=False)
    call = {"height": none.height, "width": none.width, "num_inference_steps": 4, "output_type": "pt"}
    expected = pipeline(PROMPTS[:2], latents=noise, guidance_scale=none.guidance, **call).images
    found = none.decode(sample_latents(none, none.table, conditioning, [5, 6])).clamp(0, 1)
    assert (found - expected).abs().max() < 1e-5
    every = make_denoiser(pipeline, SamplerSettings(steps=4), ModelSettings(**SIZE))
    assert len(every.table.noisy_steps()) == 3
    other = every.decode(sample_latents(every, every.table, conditioning, [5, 6])).clamp(0, 1)
    assert (other - expected).abs().max() > 1e-3


def test_settings_of_a_window_are_kept_with_the_run(tmp_path):
    config = tiny_config(tmp_path, sampler=FLOW, run={"rounds": 1}, model=SIZE)
    run = Trainer(config, model=flow_pipeline(), rewards=[brightness], prompts=PROMPTS).train()
    text = (run / "config.yaml").read_text()
    assert "noisy_steps: first:2" in text
    assert json.loads((run / "eval.json").read_text())["evaluations"]
