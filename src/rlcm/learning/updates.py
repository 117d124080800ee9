"""Learning: from experience to optimiser steps. All steps of all images form one flat batch; there is no loop over either."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import PreflightError
from rlcm.learning import losses
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.optimisation import Optimisation
from rlcm.policy import gaussian
from rlcm.processes.memory_retry import BatchSize
from rlcm.types import Conditioning, Experience

CONSISTENCY = {"huber": losses.consistency_huber, "l2": losses.consistency_l2}


class PolicyGradient:
    """Turns a round's experience into optimiser steps.

    Args:
        micro_batch_size: states a forward and backward pass takes; memory grows with it, the result does not depend on it.
    """

    def __init__(self, optimisation: Optimisation, algorithm: AlgorithmSettings, leash: Leash, micro_batch_size: int) -> None:
        self.optimisation, self.policy, self.world = optimisation, optimisation.policy, optimisation.world
        self.algorithm, self.leash = algorithm, leash
        self.micro_batch = BatchSize(micro_batch_size, "run.micro_batch_size", is_fixed=self.world.is_lockstep)
        self.consistency_coefficient = algorithm.consistency_coefficient

    def update(
        self,
        experience: Experience,
        whose: Tensor,
        trajectories: int,
        conditioning: Conditioning,
        rng: torch.Generator,
        lr: float,
        progress: float = 0.0,
    ) -> dict[str, float]:
        """Learn from a round and return its metrics.

        Args:
            experience: this process's states.
            whose: [N] the index, among the round's trajectories of all processes, of the trajectory of each state.
            trajectories: of the round, over all processes.
            rng: the same on all processes; it deals the trajectories into minibatches.
            lr: learning rate of this round.
            progress: share of the run that is over, 0 .. 1.

        Raises:
            TrainingError: after three updates in a row that were skipped for a loss or gradient that is not finite.
        """
        settings = self.algorithm
        rising = settings.consistency_schedule == "linear"
        self.consistency_coefficient = settings.consistency_coefficient * (progress if rising else 1.0)
        planned = settings.inner_epochs * settings.minibatches
        totals: dict[str, list[float]] = defaultdict(list)
        for taken, chosen in enumerate(self._minibatches(trajectories, rng)):
            rows = torch.isin(whose, chosen).nonzero().squeeze(1)
            self.optimisation.begin(lr)
            metrics = self._optimiser_step(experience.take(rows), whose[rows], conditioning, rng, first=taken == 0)
            for key, value in metrics.items():
                totals[key].append(value)
            if self._is_too_far(metrics):
                totals["updates_left_out"] = [float(planned - taken)]
                break
        return {key: max(values) if key.endswith("_max") else sum(values) / len(values) for key, values in totals.items()}

    def _minibatches(self, trajectories: int, rng: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.algorithm.inner_epochs):
            yield from torch.randperm(trajectories, generator=rng).tensor_split(self.algorithm.minibatches)

    def _is_too_far(self, metrics: dict[str, float]) -> bool:
        limit = self.algorithm.stop_kl
        return limit is not None and metrics.get("kl_from_sampling", 0.0) > limit

    def _optimiser_step(
        self, minibatch: Experience, whose: Tensor, conditioning: Conditioning, rng: torch.Generator, first: bool
    ) -> dict[str, float]:
        count = int(self.world.sum(torch.tensor([len(minibatch)])))
        if not count:  # the images of this minibatch were all dropped
            return {"skipped_updates": 1.0}
        extra: dict[str, float] = {}
        if self.algorithm.loss == "rebel":
            extra["rebel_loss"] = self._judge_by_pairs(minibatch, whose, conditioning, rng, count, first)
        longest = self._longest(minibatch)
        with self.world.together():
            sums, deviation = self.micro_batch.fit(lambda: self._gradients(minibatch, longest, conditioning, count))
        norm = self.optimisation.gather_gradients()
        deviation = self.world.largest(deviation)
        keys = sorted(sums)
        reduced = self.world.sum(torch.tensor([sums[key] for key in keys], dtype=torch.float64)) / count
        metrics = dict(zip(keys, reduced.tolist(), strict=True)) | {"ratio_deviation_max": deviation} | extra
        if self._is_too_far(metrics):
            return metrics
        taken = self.optimisation.step(metrics["loss"], norm)
        return metrics | taken if not taken["skipped_updates"] else taken

    def _gradients(
        self, minibatch: Experience, longest: int, conditioning: Conditioning, count: int
    ) -> tuple[dict[str, float], float]:
        """Leave a minibatch's gradients in the parameters; return the sums of the metrics and the ratio's largest deviation.

        Args:
            longest: states of the process that has the most; see `_parts`.
            count: states of all processes.
        """
        self.optimisation.begin()
        sums = dict.fromkeys(self._watched(), 0.0)  # the same keys on all processes, those without rows included
        deviation = 0.0
        for part, size in self._parts(minibatch, longest):
            loss, found = self.loss(part, conditioning)
            (loss.sum() / count).backward()
            if size:
                deviation = max(deviation, found.pop("ratio_deviation_max"))
                for key, value in found.items():
                    sums[key] += value * size
                sums["loss"] += float(loss.detach().sum())
        return sums, deviation

    def _longest(self, experience: Experience) -> int:
        return int(self.world.largest(len(experience))) if self.world.is_lockstep else len(experience)

    def _parts(self, experience: Experience, longest: int) -> Iterator[tuple[Experience, int]]:
        """Yield micro-batches and their sizes.

        Where the processes share the network, all of them go through as many as the one with the most states; what it has
        more is made up for by a state that weighs nothing, of size 0.
        """
        for start in range(0, longest, self.micro_batch.size):
            rows = torch.arange(len(experience))[start : start + self.micro_batch.size]
            yield (experience.take(rows), len(rows)) if len(rows) else (_weightless(experience), 0)

    def _watched(self) -> list[str]:
        kl = self.leash.coefficient and self.algorithm.kl_form == "loss"
        optional = {"kl": kl, "consistency": self.algorithm.consistency_coefficient}
        return ["loss", "clip_fraction", "ratio_deviation", "kl_from_sampling", *(k for k, used in optional.items() if used)]

    def loss(self, part: Experience, conditioning: Conditioning) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of every state [n], carrying grad, and the means of what is worth watching."""
        settings, policy = self.algorithm, self.policy
        device = policy.denoiser.device
        states, steps, old_means = part.states.to(device), part.steps.to(device), part.old_means.to(device)
        conditions = conditioning.take(part.prompt_index)
        predictions, means, stds = policy.step(states, steps, conditions)
        log_ratio = gaussian.log_ratio(part.actions.to(device), old_means, means, stds, settings.log_prob_reduction)
        advantages, weights = part.advantages.to(device), part.weights.to(device)
        if settings.loss == "ppo_clip":
            per_action = losses.ppo_clip(log_ratio, advantages, clip_range=settings.clip_range)
        else:  # REBEL's gradient has this form too, see `_judge_by_pairs`
            per_action = losses.reinforce(log_ratio, advantages)
        loss = per_action.mean(1)
        deviations = log_ratio.detach().expm1().abs()
        metrics = {
            "clip_fraction": (deviations > settings.clip_range).float().mean().item(),
            "ratio_deviation": deviations.mean().item(),
            "ratio_deviation_max": deviations.max().item(),
            "kl_from_sampling": gaussian.kl(means.detach(), old_means, stds, settings.log_prob_reduction).mean().item(),
        }
        if self.leash.coefficient and settings.kl_form == "loss":
            kl = gaussian.kl(means, self._reference_means(states, steps, conditions), stds, settings.log_prob_reduction)
            loss = loss + losses.kl_penalty(kl, coefficient=self.leash.coefficient)
            metrics["kl"] = kl.detach().mean().item()
        if settings.consistency_coefficient:
            if part.targets is None:
                raise ValueError("a consistency loss needs experience with targets")
            targets = part.targets.to(device)
            repeated = predictions.unsqueeze(1).expand_as(targets).flatten(0, 1)
            distance = CONSISTENCY[settings.consistency_distance](repeated, targets.flatten(0, 1))
            distance = distance.unflatten(0, targets.shape[:2]).mean(1)
            loss = loss + self.consistency_coefficient * distance
            metrics["consistency"] = distance.detach().mean().item()
        return loss * weights, metrics

    @torch.no_grad()
    def _reference_means(self, states: Tensor, steps: Tensor, conditions: Conditioning) -> Tensor:
        with self.policy.reference():
            return self.policy.step(states, steps, conditions)[1]

    @torch.no_grad()
    def reference_log_ratios(self, experience: Experience, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Return how much likelier each action was than under the untrained model, and the exact KL divergence per state.

        Their expectations are equal. In a reward it must be the log-ratio log pi(a|s) - log pi_ref(a|s): the divergence itself
        does not depend on the action, so its own gradient would be lost there.

        Args:
            experience: [N] states of the present policy.

        Returns:
            [N, K] and [N], on the CPU.
        """
        scale, device = self.algorithm.log_prob_reduction, self.policy.denoiser.device
        ratios, divergences = [torch.zeros(0, experience.actions.shape[1])], [torch.zeros(0)]
        for part, size in self._parts(experience, self._longest(experience)):
            states, steps, means = part.states.to(device), part.steps.to(device), part.old_means.to(device)
            reference = self._reference_means(states, steps, conditioning.take(part.prompt_index))
            stds = self.policy.table.std[steps]
            ratios.append(-gaussian.log_ratio(part.actions.to(device), means, reference, stds, scale).cpu()[:size])
            divergences.append(gaussian.kl(means, reference, stds, scale).cpu()[:size])
        return torch.cat(ratios), torch.cat(divergences)

    def _judge_by_pairs(
        self,
        minibatch: Experience,
        whose: Tensor,
        conditioning: Conditioning,
        rng: torch.Generator,
        count: int,
        first: bool,
    ) -> float:
        """Put REBEL's pseudo-advantages in place of a minibatch's advantages, and return REBEL's loss.

            dL/dtheta = sum over actions of  dL/d(log r) * d(log r)/dtheta

        so with A = -dL/d(log r), times N K for the mean that `loss` takes, the score function gives exactly the gradient of the
        loss on pairs. A pair then need not fit into one micro-batch, nor be on one process. Pairs are two trajectories of one
        prompt, or two branches of one trajectory.
        """
        log_ratio = torch.zeros_like(minibatch.advantages) if first else self._log_ratios(minibatch, conditioning)
        gather = self.world.gather_rows
        owners, inverse = gather(whose).unique(return_inverse=True)
        actions = log_ratio.shape[1]
        totals = torch.zeros(len(owners), actions).index_add_(0, inverse, gather(log_ratio)).requires_grad_()
        worth = torch.zeros(len(owners), actions).index_copy_(0, inverse, gather(minibatch.advantages))
        prompts = torch.zeros(len(owners), dtype=torch.long).index_copy_(0, inverse, gather(minibatch.prompt_index))
        comparable = torch.arange(len(owners)).repeat_interleave(actions) if actions > 1 else prompts
        one, other = losses.pair_by_prompt(comparable, rng).unbind(1)
        flat, rewards = totals.flatten(), worth.flatten()
        loss = losses.rebel(flat[one], flat[other], rewards[one], rewards[other], eta=self.algorithm.rebel_eta).sum()
        loss = loss / max(len(one), 1)
        (gradient,) = torch.autograd.grad(loss, totals)
        mine = torch.searchsorted(owners, whose)
        minibatch.advantages = -gradient[mine] * count * actions
        return float(loss.detach())

    @torch.no_grad()
    def _log_ratios(self, experience: Experience, conditioning: Conditioning) -> Tensor:
        """Return log pi - log pi_old of all actions [N, K], on the CPU."""
        scale, device = self.algorithm.log_prob_reduction, self.policy.denoiser.device
        found = [torch.zeros(0, experience.actions.shape[1])]
        for part, size in self._parts(experience, self._longest(experience)):
            conditions = conditioning.take(part.prompt_index)
            _, means, stds = self.policy.step(part.states.to(device), part.steps.to(device), conditions)
            ratios = gaussian.log_ratio(part.actions.to(device), part.old_means.to(device), means, stds, scale)
            found.append(ratios.cpu()[:size])
        return torch.cat(found)

    def check(self, part: Experience, conditioning: Conditioning) -> dict[str, float]:
        """Check, before the first update, that the ratio is 1 and that gradients reach the adapter; change nothing.

        A process without states only takes part in what concerns all, and returns nothing.

        Raises:
            PreflightError: if either does not hold.
        """
        if not len(part) and not self.world.is_lockstep:
            return {}
        self.optimisation.begin()
        loss, metrics = self.loss(part if len(part) else _weightless(part), conditioning)
        if loss.requires_grad:
            loss.sum().backward()
        reached = [name for name, p in self.policy.named_parameters.items() if p.grad is not None and bool(p.grad.any())]
        self.optimisation.begin()
        if not len(part):
            return {}
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


def _weightless(experience: Experience) -> Experience:
    """Return a state of zeros that weighs nothing, shaped as those of `experience`, which may have none."""
    columns: dict[str, Any] = {}
    for name in Experience.__slots__:
        column = getattr(experience, name)
        columns[name] = None if column is None else torch.zeros(1, *column.shape[1:], dtype=column.dtype)
    return Experience(**columns)
