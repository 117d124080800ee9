"""Learning: from experience to optimiser steps. All steps of all images form one flat batch; there is no loop over either."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rlcm import gaussian, losses
from rlcm.distributed import World
from rlcm.errors import PreflightError, TrainingError
from rlcm.gaussian import Reduction
from rlcm.policy import Policy
from rlcm.settings import Settings
from rlcm.types import Conditioning, Experience


class AlgorithmSettings(Settings):
    """How rewards become a change of the weights. The defaults are RLCM's."""

    loss: Literal["ppo_clip", "reinforce"] = "ppo_clip"
    """`ppo_clip`: PPO's clipped surrogate. `reinforce`: the plain score function, for one update a round."""
    clip_range: float = Field(default=1e-4, gt=0)
    """PPO's epsilon, on the scale of `log_prob_reduction`."""
    log_prob_reduction: Reduction = "mean"
    """What log-probabilities are divided by: `mean` the number D of latent entries (published), `sqrt` its root (the same
    clip range then fits all resolutions), `sum` nothing."""
    advantage: Literal["prompt_statistics", "group", "leave_one_out", "batch"] = "prompt_statistics"
    """What a reward is compared with: `prompt_statistics` the running mean and std of its prompt (published); `group` and
    `leave_one_out` the other images of the same prompt or branch point; `batch` all images of the round."""
    normalise_std: bool = True
    """Divide advantages by the standard deviation of what they are compared with."""
    advantage_clip: float = Field(default=10.0, gt=0)
    """Advantages are clamped to plus or minus this."""
    stat_buffer_size: int = Field(default=32, ge=1)
    """Rewards remembered for a prompt."""
    stat_min_count: int = Field(default=16, ge=1)
    """Rewards a prompt needs before its own statistics are used instead of the batch's."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps into which a round's images are divided."""
    inner_epochs: int = Field(default=1, ge=1)
    """Passes over a round's images."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the untrained model, per step, on the scale of `log_prob_reduction`."""
    kl_target: float | None = Field(default=None, gt=0)
    """Where set, the weight grows while the divergence exceeds this, by up to a tenth a round, and falls back below it, but
    never under `kl_coefficient`."""


class OptimizerSettings(Settings):
    """The optimiser of the adapter."""

    name: Literal["adam", "adamw"] = "adamw"
    """`adam` or `adamw`."""
    lr: float = Field(default=1e-4, gt=0, le=1)
    """Learning rate at its peak."""
    schedule: Literal["constant", "linear"] = "constant"
    """`linear` falls to 0 over the run."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decay of the weights, decoupled with `adamw`."""
    max_grad_norm: float = Field(default=5.0, gt=0)
    """Gradients longer than this are shortened to it."""


def make_optimizer(settings: OptimizerSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[settings.name](
        parameters, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )


class PolicyGradient:
    """Turns a round's experience into optimiser steps.

    Args:
        micro_batch_size: states a forward and backward pass takes; memory grows with it, the result does not depend on it.
    """

    max_skipped_in_a_row = 3

    def __init__(
        self,
        policy: Policy,
        algorithm: AlgorithmSettings,
        optimizer: OptimizerSettings,
        micro_batch_size: int,
        world: World,
    ) -> None:
        self.policy, self.algorithm, self.settings, self.world = policy, algorithm, optimizer, world
        self.micro_batch_size = micro_batch_size
        self.optimizer = make_optimizer(optimizer, policy.parameters)
        self.skipped_in_a_row = 0
        self.kl_coefficient = algorithm.kl_coefficient

    def update(
        self, experience: Experience, whose: Tensor, images: int, conditioning: Conditioning, rng: torch.Generator, lr: float
    ) -> dict[str, float]:
        """Learn from a round and return its metrics.

        Args:
            experience: this process's states.
            whose: [N] the index, among the round's trajectories of all processes, of the trajectory of each state.
            images: trajectories of the round over all processes.
            rng: the same on all processes; it deals the trajectories into minibatches.
            lr: learning rate of this round.

        Raises:
            TrainingError: after three updates in a row that were skipped for a loss or gradient that is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        totals: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.algorithm.inner_epochs):
            order = torch.randperm(images, generator=rng)
            for chosen in order.tensor_split(self.algorithm.minibatches):
                rows = torch.isin(whose, chosen).nonzero().squeeze(1)
                for key, value in self._optimiser_step(experience, rows, conditioning).items():
                    totals[key].append(value)
        metrics = {key: max(values) if key.endswith("_max") else sum(values) / len(values) for key, values in totals.items()}
        if "kl" in metrics:
            metrics["kl_coefficient"] = self.kl_coefficient
            if self.algorithm.kl_target is not None:
                least = self.algorithm.kl_coefficient
                self.kl_coefficient = losses.adaptive_coefficient(
                    self.kl_coefficient, metrics["kl"], self.algorithm.kl_target, minimum=least
                )
        return metrics

    def _optimiser_step(self, experience: Experience, rows: Tensor, conditioning: Conditioning) -> dict[str, float]:
        count = int(self.world.sum(torch.tensor([len(rows)])))
        if not count:  # the images of this minibatch were all dropped
            return {"skipped_updates": 1.0}
        self.optimizer.zero_grad(set_to_none=True)
        # The same keys on all processes, those without rows included.
        sums = dict.fromkeys(("loss", "clip_fraction", "ratio_deviation", *(["kl"] if self.kl_coefficient else [])), 0.0)
        deviation = 0.0
        # A process without rows in this minibatch only takes part in the sums; split would give it one empty part.
        for part in rows.split(self.micro_batch_size) if len(rows) else ():
            loss, found = self.loss(experience.take(part), conditioning)
            (loss.sum() / count).backward()
            deviation = max(deviation, found.pop("ratio_deviation_max"))
            for key, value in found.items():
                sums[key] += value * len(part)
            sums["loss"] += float(loss.detach().sum())
        self.world.sum_gradients(self.policy.parameters)
        deviation = float(self.world.gather_rows(torch.tensor([deviation], dtype=torch.float64)).max())
        norm = float(nn.utils.clip_grad_norm_(self.policy.parameters, self.settings.max_grad_norm))
        keys = sorted(sums)
        reduced = self.world.sum(torch.tensor([sums[key] for key in keys], dtype=torch.float64)) / count
        metrics = dict(zip(keys, reduced.tolist(), strict=True)) | {"grad_norm": norm, "ratio_deviation_max": deviation}
        if math.isfinite(norm) and math.isfinite(metrics["loss"]):
            self.optimizer.step()
            self.policy.follow()
            self.skipped_in_a_row = 0
            return metrics | {"skipped_updates": 0.0}
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.max_skipped_in_a_row:
            raise TrainingError(
                f"{self.skipped_in_a_row} updates in a row had a loss or gradient that is not finite (loss {metrics['loss']}, "
                f"gradient norm {norm}), so training stops here. Lower optimizer.lr={self.settings.lr}, raise "
                f"algorithm.kl_coefficient={self.algorithm.kl_coefficient}, or use model.precision=fp32."
            )
        return {"skipped_updates": 1.0}

    def loss(self, part: Experience, conditioning: Conditioning) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of every state [n], carrying grad, and the means of what is worth watching."""
        settings, policy = self.algorithm, self.policy
        device = policy.denoiser.device
        states, steps, old_means = part.states.to(device), part.steps.to(device), part.old_means.to(device)
        conditions = conditioning.take(part.prompt_index)
        _, means, stds = policy.step(states, steps, conditions)
        log_ratio = gaussian.log_ratio(part.actions.to(device), old_means, means, stds, settings.log_prob_reduction)
        advantages, weights = part.advantages.to(device), part.weights.to(device)
        if settings.loss == "ppo_clip":
            per_action = losses.ppo_clip(log_ratio, advantages, clip_range=settings.clip_range)
        else:
            per_action = losses.reinforce(log_ratio, advantages)
        loss = per_action.mean(1) * weights
        deviations = log_ratio.detach().expm1().abs()
        metrics = {
            "clip_fraction": (deviations > settings.clip_range).float().mean().item(),
            "ratio_deviation": deviations.mean().item(),
            "ratio_deviation_max": deviations.max().item(),
        }
        if self.kl_coefficient:
            with torch.no_grad(), policy.reference():
                _, reference_means, _ = policy.step(states, steps, conditions)
            kl = gaussian.kl(means, reference_means, stds, settings.log_prob_reduction)
            loss = loss + losses.kl_penalty(kl, coefficient=self.kl_coefficient) * weights
            metrics["kl"] = kl.detach().mean().item()
        return loss, metrics

    def check(self, part: Experience, conditioning: Conditioning) -> dict[str, float]:
        """Check, before the first update, that the ratio is 1 and that gradients reach the adapter; change nothing.

        Raises:
            PreflightError: if either does not hold.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = self.loss(part, conditioning)
        if loss.requires_grad:
            loss.sum().backward()
        reached = [name for name, p in self.policy.named_parameters.items() if p.grad is not None and bool(p.grad.any())]
        self.optimizer.zero_grad(set_to_none=True)
        deviation = metrics["ratio_deviation_max"]
        if not deviation <= 1e-5:
            raise PreflightError(
                f"before the first update the ratio of new to old policy is off 1 by {deviation:.2e} (accepted: 1e-5), so "
                "sampling and learning do not compute the same thing. Use model.precision=fp32, and switch dropout and other "
                "randomness in the network off."
            )
        if not reached and bool(part.advantages.any()):
            raise PreflightError(
                "no gradient reaches the adapter, so nothing would be learnt; check lora.target_modules and that the network's "
                "forward pass is not inside torch.no_grad()."
            )
        return {"ratio_deviation": deviation, "parameters_with_gradient": float(len(reached))}
