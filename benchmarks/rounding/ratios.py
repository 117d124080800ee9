"""The ratio before any update, where sampling and learning differ by one rounding of the network's output and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.shared.pages import table
from benchmarks.shared.simulated_accelerator import simulated
from benchmarks.sizes.shapes import BETAS
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.mismatch import standard_distance
from rlcm.learning.optimisation import Optimisation, OptimizerSettings
from rlcm.learning.updates import PolicyGradient
from rlcm.policy.noise import image_seed
from rlcm.policy.policy import AdapterSettings, Policy
from rlcm.policy.rollout import rollout
from rlcm.policy.samplers import build_table
from rlcm.processes.distributed import World
from rlcm.types import Conditioning, Experience, Trajectory

STEPS = (2, 4, 8)
PRECISIONS = ("bf16", "fp16", "tf32")
SAMPLED_AT_ONCE, LEARNT_AT_ONCE = 16, 8
CALCULATED = {"fp16": {2: (7.8e-5, 7.8e-5), 4: (1.5e-5, 4.3e-5), 8: (0.9e-5, 1.6e-5)},
              "bf16": {2: (1.1e-3, 1.1e-3), 4: (1.6e-4, 5.1e-4), 8: (0.7e-4, 1.9e-4)}}  # fmt: skip
"""What was calculated before anything was built: the largest distance of the ratio from 1, at the best and at the worst step."""


class UnitNetwork(nn.Module):
    """A network whose output has unit variance, as that of a diffusion model has: a mixture of channels, divided by its size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [B, C, h, w] for latents of that shape."""
        mixed = self.to_q(x.movedim(1, -1)).movedim(-1, 1)
        return mixed / mixed.square().mean((1, 2, 3), keepdim=True).sqrt()


class UnitDenoiser:
    """A `rlcm.types.Denoiser` of a latent consistency model around that network; it has one prompt, and its images are latents."""

    def __init__(self, steps: int, size: int, seed: int = 0) -> None:
        self.latent_shape: tuple[int, ...] = (4, size, size)
        self.table = build_table(diffusers.LCMScheduler(**BETAS), steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module: nn.Module = UnitNetwork(4)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return a conditioning that says nothing."""
        return Conditioning({"nothing": torch.zeros(len(prompts), 1)})

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Return the first latents."""
        return noise

    def denoise(self, x: Tensor, step: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the network's output."""
        found: Tensor = self.module(x)
        return found

    def decode(self, latents: Tensor) -> Tensor:
        """Return three channels of the latents as images."""
        return latents[:, :3] * 0.5 + 0.5


def sample(policy: Policy, conditioning: Conditioning, count: int) -> Trajectory:
    """Return plain trajectories, sampled in batches."""
    seeds = [image_seed("precision", number) for number in range(count)]
    rows = range(0, count, SAMPLED_AT_ONCE)
    return Trajectory.cat(
        [
            rollout(policy, conditioning, torch.zeros(len(part), dtype=torch.long), part)
            for part in (seeds[start : start + SAMPLED_AT_ONCE] for start in rows)
        ]
    )


def first_update(
    policy: Policy, trajectory: Trajectory, action: int, conditioning: Conditioning, source: str
) -> dict[str, float]:
    """Return the metrics of the first update of a round, along the actions of one step; they are taken before it moves anything.

    Args:
        action: which of a trajectory's noisy steps.
        source: `algorithm.old_policy`.
    """
    algorithm = AlgorithmSettings.model_validate({"old_policy": source})
    count = len(trajectory.states)
    experience = Experience(
        states=trajectory.states[:, action],
        steps=trajectory.steps[:, action],
        prompt_index=trajectory.prompt_index,
        old_means=trajectory.means[:, action],
        actions=trajectory.actions[:, action],
        advantages=torch.randn(count, 1, generator=torch.Generator().manual_seed(0)),
        weights=torch.ones(count),
    )
    update = PolicyGradient(
        Optimisation(policy, OptimizerSettings(), World()), algorithm, Leash(algorithm), LEARNT_AT_ONCE, planned=count
    )
    rng = torch.Generator().manual_seed(0)
    return update.update(experience, torch.arange(count), count, conditioning, rng, lr=0.0)


def measure(steps: int, precision: str, size: int = 64, trajectories: int = 64) -> dict[str, Any]:
    """Return a row: the ratio's largest distance from 1 with old means of sampling and of learning, and the mismatch.

    Args:
        precision: that the network's output is rounded to; fp32 is not rounded.
        size: height and width of the latent, which has 4 channels.
        trajectories: that are sampled.
    """
    denoiser = UnitDenoiser(steps, size)
    policy = Policy(denoiser, AdapterSettings(rank=2))
    conditioning = denoiser.encode(["anything"])
    with nullcontext() if precision == "fp32" else simulated(denoiser, precision):
        trajectory = sample(policy, conditioning, trajectories)
        of = {
            source: [first_update(policy, trajectory, action, conditioning, source) for action in range(steps - 1)]
            for source in ("sampling", "learning")
        }
    entries = trajectory.states[0, 0].numel()
    divergences = [found["mismatch_kl"] for found in of["learning"]]
    return {
        "steps": steps,
        "precision": precision,
        "latent_entries": entries,
        "ratio_off_1_sampling": [found["ratio_deviation_max"] for found in of["sampling"]],
        "ratio_off_1_learning": [found["ratio_deviation_max"] for found in of["learning"]],
        "mismatch_kl": divergences,
        "mismatch_stds": [standard_distance(divergence, entries) for divergence in divergences],
        "mismatch_ratio_max": [found["mismatch_ratio_max"] for found in of["learning"]],
        "calculated": CALCULATED.get(precision, {}).get(steps),
    }


def measure_all(size: int = 64, trajectories: int = 64) -> list[dict[str, Any]]:
    """Return all rows."""
    pairs = itertools.product(PRECISIONS, STEPS)
    return [measure(steps, precision, size, trajectories) for precision, steps in pairs]


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    head = ["precision", "steps", "ratio off 1, old means of sampling", "of learning", "KL per action, nats", "distance, stds"]
    return table(
        head,
        [
            [
                row["precision"],
                str(row["steps"]),
                span(row["ratio_off_1_sampling"]),
                span(row["ratio_off_1_learning"]),
                span(row["mismatch_kl"], ".2g"),
                span(row["mismatch_stds"], ".2g"),
            ]
            for row in rows
        ],
    )


def span(values: Sequence[float], form: str = ".1e") -> str:
    """Return the least and the most of the values of a trajectory's steps."""
    least, most = (f"{value:{form}}" if value else "0" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"
