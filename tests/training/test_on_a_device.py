"""Whole rounds on a device that is not the CPU: no tensors of two devices meet, and nothing waits inside a micro-batch or a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from tiny_runs import PROMPTS, STEPS, lcm_pipeline, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlcm.training.trainer import Trainer

# It needs a torch that lets Python register a device; older ones have no such function.
stand_in = pytest.importorskip("stand_in", exc_type=ImportError)
DevicesMeet, OnDevice, StandIn = stand_in.DevicesMeet, stand_in.OnDevice, stand_in.StandIn

BACKPROP = {"algorithm": {"loss": "reward_backprop"}, "run": {"micro_batch_size": 2}}
SMALL = {"rollout": {"batch_size": 4, "sample_batch_size": 2}, "run": {"micro_batch_size": 3}}
BATCHES = 2
"""In which the four images are sampled."""
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "branched": {"rollout": {"branches": 2, "branch_schedule": "uniform", "antithetic": True}},
    "dense": {"algorithm": {"dense_every": 1}},
    "consistency": {
        "rollout": {"branches": 2},
        "algorithm": {"consistency_coefficient": 0.1, "consistency_target": "next"},
    },
    "kl as loss": {"algorithm": {"kl_coefficient": 0.1, "minibatches": 2, "inner_epochs": 2}},
    "kl as reward": {"algorithm": {"kl_coefficient": 0.1, "kl_form": "reward", "importance_cap": 2.0}},
    "rebel": {"algorithm": {"loss": "rebel", "minibatches": 2}, "rollout": {"images_per_prompt": 2}},
    "final std": {"sampler": {"final_std": 0.05}, "lora": {"ema_decay": 0.9}},
    "back-propagation": BACKPROP,
    "awm": {"algorithm": {"loss": "awm", "noise_levels": 2, "kl_coefficient": 0.1}, "rollout": {"branches": 2}},
    "nft": {"algorithm": {"loss": "nft", "minibatches": 2}},
    "divergence": {"algorithm": {"loss": "divergence_ppo", "inner_epochs": 2}},
    "normalised ratio": {"algorithm": {"normalise_ratio": True}},
    "last call": {"algorithm": {"last_call_weight": 0.5}, "rollout": {"branches": 2}},
}


def bright(images, prompts):
    return images.mean((1, 2, 3))


bright.differentiable = True


def trainer(folder, device, changes, pipeline=None, prompts=PROMPTS):
    merged = {
        key: {**SMALL.get(key, {}), **changes.get(key, {})} if isinstance(changes.get(key, {}), dict) else changes[key]
        for key in {*SMALL, *changes}
    }
    torch.manual_seed(0)
    pipeline = pipeline or lcm_pipeline(mid_block_type=None)
    pipeline.to(device)
    return Trainer(tiny_config(folder, **merged), model=pipeline, rewards=[bright], prompts=prompts)


def waits_of_a_round(device, made):
    """Return the waits of the second round, in which nothing is done for the first time."""
    made.round()
    device.log.clear()
    made.round()
    return list(device.log)


@pytest.mark.parametrize("case", CASES)
def test_a_round_on_a_device(case, tmp_path):
    with StandIn() as device:
        made = trainer(tmp_path, device.name, CASES[case])
        log = waits_of_a_round(device, made)
        assert all(isinstance(p, OnDevice) for p in made.parts.policy.parameters)
    inside = [wait for wait in log if {"updates.loss", "forward.loss", "steps._means_of", "policy.step"} & set(wait.within)]
    assert not inside, Counter(inside)
    # An optimiser step reads its metrics and the length of its gradient; everything else belongs to a round or a batch of images.
    steps = made.config.algorithm.minibatches * made.config.algorithm.inner_epochs
    waits = Counter((wait.kind, wait.place) for wait in log)
    learning = [wait for wait in log if {"steps.update", "backprop.update"} & set(wait.within)]
    # A reward with a gradient is the user's code; its answer is looked at once a micro-batch.
    of_rewards = [wait for wait in learning if "mix.differentiable" in wait.within]
    of_pairs = [wait for wait in learning if "updates._judge_by_pairs" in wait.within]
    assert len(learning) - len(of_rewards) - len(of_pairs) <= 2 * steps, waits
    assert len(of_pairs) <= 4 * steps, waits
    decodings = BATCHES * (1 + (STEPS if case == "dense" else 0))
    of_leash = 2 if case == "kl as reward" else 0
    assert len(log) - len(learning) <= decodings + of_leash, waits


def test_the_number_of_waits_does_not_grow_with_the_micro_batches(tmp_path):
    counts = []
    for size in (8, 2):
        with StandIn() as device:
            made = trainer(tmp_path / str(size), device.name, {"run": {"micro_batch_size": size}})
            counts.append(len(waits_of_a_round(device, made)))
    assert counts[0] == counts[1] <= 6


@pytest.mark.parametrize("case", ["plain", "branched", "kl as reward", "rebel"])
def test_a_device_gives_what_the_cpu_gives(case, tmp_path):
    timed = ("time", "seconds", "images_per_second", "reward_wait_share", "mismatch")
    changes = CASES[case]
    # One update: afterwards the two differ by the rounding of their kernels for attention.
    changes = changes | {"algorithm": {"old_policy": "learning", **changes.get("algorithm", {}), "minibatches": 1}}
    with sdpa_kernel(SDPBackend.MATH), StandIn() as device:
        there = trainer(tmp_path / "there", device.name, changes).round()
    with sdpa_kernel(SDPBackend.MATH):
        here = trainer(tmp_path / "here", "cpu", changes).round()
    expected = {key: value for key, value in here.items() if not key.startswith(timed)}
    assert {key: there[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-7)


UNGUIDED = {"sampler": {"steps": STEPS, "guidance": None}}
UNCLIPPED = tiny_pipelines.schedule(clip_sample=False)
FAMILIES = {
    "sdxl": (lambda: tiny_pipelines.sdxl(diffusers.LCMScheduler(**UNCLIPPED), time_cond_proj_dim=8), {}),
    "ddim": (lambda: tiny_pipelines.stable_diffusion(diffusers.DDIMScheduler(**UNCLIPPED)), {}),
    "pixart": (lambda: tiny_pipelines.pixart(diffusers.LCMScheduler(**UNCLIPPED)), UNGUIDED),
    "sana": (tiny_pipelines.sana, {}),
    "flux": (
        lambda: tiny_pipelines.flux(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, shift=3.0)),
        {"model": {"height": 16, "width": 16}},
    ),
    "pixel": (tiny_pipelines.pixel, UNGUIDED),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_plays_a_round_on_a_device(family, tmp_path):
    make, changes = FAMILIES[family]
    prompts = ["1", "2", "3"] if family == "pixel" else PROMPTS
    with StandIn() as device:
        made = trainer(tmp_path, device.name, changes, make(), prompts)
        log = waits_of_a_round(device, made)
    inside = [wait for wait in log if {"updates.loss", "forward.loss", "policy.step"} & set(wait.within)]
    assert not inside, Counter((wait.kind, wait.place) for wait in inside)


@pytest.mark.slow
def test_a_whole_run_on_a_device_with_evaluation_checkpoint_and_resume(tmp_path):
    changes = {"evaluation": {"every": 1}, "run": {"rounds": 2, "save_every": 1}}
    with StandIn() as device:
        run = trainer(tmp_path, device.name, changes).train()
        pipeline = lcm_pipeline(mid_block_type=None)
        pipeline.to(device.name)
        Trainer.resume(run, ["run.rounds=3"], model=pipeline, rewards=[bright], prompts=PROMPTS).train()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_stand_in_sees_what_it_is_there_to_see():
    with StandIn() as device:
        there, here = torch.ones(3, device=device.name), torch.ones(3)
        with pytest.raises(DevicesMeet):
            there + here
        there.sum().item()
        there.cpu()
        assert [wait.kind for wait in device.log] == ["item", "to cpu"]
