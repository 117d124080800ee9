"""Tiny models with an adapter, experience, and runs of a few rounds: what the tests of the core share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from tiny_pipelines import schedule, stable_diffusion
from torch import Tensor

from rlcm.pipelines import PipelineDenoiser, SamplerSettings, make_denoiser
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.policy.rollout import rollout
from rlcm.training.config import TrainConfig, parse_settings
from rlcm.types import Conditioning, Experience, Trajectory

PROMPTS = ["a red cat", "two blue dogs on a hill", "fox"]
STEPS = 3


def lcm_pipeline(**unet: Any) -> Any:
    """Return a tiny LatentConsistencyModelPipeline; the same weights every time."""
    return stable_diffusion(
        diffusers.LCMScheduler(**schedule(clip_sample=False)),
        diffusers.LatentConsistencyModelPipeline,
        time_cond_proj_dim=8,
        **unet,
    )


def tiny_denoiser(steps: int = STEPS, unet: dict[str, Any] | None = None, **sampler: Any) -> PipelineDenoiser:
    """Return the denoiser of a tiny consistency model: 4x8x8 latents, 16x16 images."""
    return make_denoiser(lcm_pipeline(**(unet or {})), SamplerSettings(steps=steps, guidance=3.0, **sampler))


def tiny_policy(denoiser: PipelineDenoiser | None = None, **adapter: Any) -> Policy:
    """Return a policy over a tiny denoiser; its adapter changes nothing yet."""
    return Policy(denoiser or tiny_denoiser(), AdapterSettings(**{"rank": 4, "alpha": 8, **adapter}))


@torch.no_grad()
def stir(policy: Policy, size: float = 0.05, seed: int = 1) -> Policy:
    """Add noise to the adapter, so that it changes what the network says; return the policy."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters:
        parameter += size * torch.randn(parameter.shape, generator=generator)
    return policy


def plain_rollout(policy: Policy, count: int = 4) -> tuple[Trajectory, Conditioning]:
    """Return `count` plain trajectories, their prompts dealt in turn, and the conditioning."""
    conditioning = policy.denoiser.encode(PROMPTS)
    index = torch.arange(count) % len(PROMPTS)
    return rollout(policy, conditioning, index, [100 + i for i in range(count)]), conditioning


def experience_of(trajectory: Trajectory, seed: int = 5) -> tuple[Experience, Tensor]:
    """Return a trajectory's states with random advantages and weights, and whose they are."""
    size, steps, actions = trajectory.actions.shape[:3]
    generator = torch.Generator().manual_seed(seed)
    return Experience(
        states=trajectory.states.flatten(0, 1),
        steps=trajectory.steps.flatten(),
        prompt_index=trajectory.prompt_index.repeat_interleave(steps),
        old_means=trajectory.means.flatten(0, 1),
        actions=trajectory.actions.flatten(0, 1),
        advantages=torch.randn(size * steps, actions, generator=generator),
        weights=0.5 + torch.rand(size * steps, generator=generator),
    ), torch.arange(size).repeat_interleave(steps)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean of every picture [B]: a reward that a tiny model can learn."""
    return images.mean((1, 2, 3))


def tiny_config(output: Any, **changes: Any) -> TrainConfig:
    """Return the configuration of a short run in `output`; a change such as `run={"rounds": 4}` adds to its group."""
    values: dict[str, Any] = {
        "name": "run",
        "output": str(output),
        "sampler": {"steps": STEPS, "guidance": 3.0},
        "rewards": ["jpeg_compressibility"],
        "lora": {"rank": 4, "alpha": 8},
        "rollout": {"batch_size": 6, "branches": 1, "branch_schedule": "last"},
        "algorithm": {"stat_buffer_size": 8, "stat_min_count": 3, "kl_coefficient": 0.0, "kl_target": None},
        "optimizer": {"lr": 1e-4, "schedule": "constant", "max_pace": 1.0},
        "evaluation": {"images": 4, "every": 0},
        "run": {"rounds": 2, "tracker": "none", "save_every": 1, "keep_last": 9},
    }
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
    return parse_settings(TrainConfig, values)


class Listener:
    """A trainer's watcher that remembers notes, and calls a function after a given round."""

    def __init__(self, at: int = 0, call: Any = None) -> None:
        self.notes: list[str] = []
        self.at, self.call = at, call

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round(self, metrics: dict[str, float], rounds: int) -> None:
        if metrics["round"] == self.at:
            self.call()


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())
