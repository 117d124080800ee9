"""Learning: from experience to optimiser steps. All steps of all images form one flat batch; there is no loop over either."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from rlcm.errors import PreflightError
from rlcm.learning import losses
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.micro_batches import MicroBatches
from rlcm.learning.mismatch import Mismatch, computes_alike
from rlcm.learning.optimisation import Optimisation
from rlcm.policy import gaussian
from rlcm.processes.memory_retry import BatchSize
from rlcm.transfer import send
from rlcm.types import Conditioning, Experience

CONSISTENCY = {"huber": losses.consistency_huber, "l2": losses.consistency_l2}


class PolicyGradient:
    """Turns a round's experience into optimiser steps.

    The old mean of a state, to which the ratio is taken, comes from the computation that gives the new one, wherever that
    may round otherwise than sampling does (`algorithm.old_policy`): before the first update of a round it IS the new mean.
    So the ratio is 1 there by construction, in every precision, on every device and at every pair of batch sizes.

    Args:
        micro_batch_size: states a forward and backward pass takes; memory grows with it, the result does not depend on it.
        planned: states of a minibatch of this process, if no image is dropped; see `MicroBatches`.
    """

    def __init__(
        self,
        optimisation: Optimisation,
        algorithm: AlgorithmSettings,
        leash: Leash,
        micro_batch_size: int,
        planned: int | None = None,
    ) -> None:
        self.optimisation, self.policy, self.world = optimisation, optimisation.policy, optimisation.world
        self.algorithm, self.leash = algorithm, leash
        self.micro_batch = BatchSize(micro_batch_size, "run.micro_batch_size", is_fixed=self.world.is_lockstep)
        alike = computes_alike(self.policy.denoiser)
        self.is_recomputed = algorithm.old_policy == "learning" or (algorithm.old_policy == "auto" and not alike)
        """Whether old means come from the computation that learns, and not from the one that sampled."""
        noisy = self.policy.noisy_steps
        self.parts = MicroBatches(
            self.micro_batch, planned, is_padded=self.is_recomputed, noisy_step=int(noisy[0]) if len(noisy) else 0
        )
        self._settled_in = 0  # states of a part, when a round's old means were all computed before its update
        self.mismatch = Mismatch(algorithm)
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
        experience = experience.to(self.policy.denoiser.device)
        if self.is_recomputed and experience.sampling_means is None:
            self._settled_in = 0
            experience = replace(experience, sampling_means=experience.old_means, old_means=experience.old_means.clone())
        totals: dict[str, list[float]] = defaultdict(list)
        for taken, chosen in enumerate(self._minibatches(trajectories, rng)):
            rows = torch.isin(whose, chosen).nonzero().squeeze(1)
            opening = self.is_recomputed and taken == 0
            others = torch.isin(whose, chosen, invert=True).nonzero().squeeze(1) if opening else None
            self.optimisation.begin(lr)
            metrics = self._optimiser_step(experience, rows, whose[rows], conditioning, rng, first=taken == 0, others=others)
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
        self,
        experience: Experience,
        rows: Tensor,
        whose: Tensor,
        conditioning: Conditioning,
        rng: torch.Generator,
        *,
        first: bool,
        others: Tensor | None,
    ) -> dict[str, float]:
        """Take an optimiser step along a minibatch, unless it must be left out, and return the metrics.

        Args:
            experience: of the round, on the device; where its old means are to be recomputed, the first step fills them in.
            rows: [n] of the minibatch, as `whose` is.
            first: whether it is the round's first step, when the policy is still the one that sampled.
            others: in the first step, the rows that are not in its minibatch: their old means are filled in before it is taken.
        """
        minibatch = experience.take(rows)
        count = int(self.world.sum(torch.tensor([len(minibatch)])))
        if not count:  # the images of this minibatch were all dropped
            self._fill_in(experience, others, conditioning)
            return {"skipped_updates": 1.0}
        extra: dict[str, float] = {}
        if self.algorithm.loss == "rebel":
            extra["rebel_loss"] = self._judge_by_pairs(minibatch, whose, conditioning, rng, count, first)
        most = self._longest(len(minibatch))
        with self.world.together():
            sums, worst, means = self.micro_batch.fit(lambda: self._gradients(minibatch, most, conditioning, count, first))
        if first and self.is_recomputed:
            experience.old_means[send(rows, means.device)] = means
        self._fill_in(experience, others, conditioning)
        norm = self.optimisation.gather_gradients()
        largest = {key: self.world.largest(worst[key]) for key in sorted(worst)}
        keys = sorted(sums)
        reduced = self.world.sum(torch.tensor([sums[key] for key in keys], dtype=torch.float64)) / count
        metrics = dict(zip(keys, reduced.tolist(), strict=True)) | largest | extra
        if first and math.isfinite(metrics["mismatch_kl"]):  # otherwise the loss is not finite either, and the step is left out
            self.mismatch.require_agreement(metrics, experience.states.shape[1:].numel())
        if self._is_too_far(metrics):
            return metrics
        taken = self.optimisation.step(metrics["loss"], norm)
        return metrics | taken if not taken["skipped_updates"] else taken

    def _gradients(
        self, minibatch: Experience, longest: int | None, conditioning: Conditioning, count: int, first: bool
    ) -> tuple[dict[str, float], dict[str, float], Tensor]:
        """Leave a minibatch's gradients in the parameters; return sums and maxima of the metrics, and the old means used.

        Nothing in it waits for the device but the reading of the metrics at the end.

        Args:
            longest: see `MicroBatches.over`.
            count: states of all processes.
        """
        self.optimisation.begin()
        sizes: list[int] = []
        found: list[Tensor] = []
        old_means = [minibatch.old_means[:0]]
        watched, extreme = self._watched(first), self._extreme(first)
        for part in self.parts.over(minibatch, longest):
            loss, metrics = self.loss(part.experience, conditioning, size=part.size, first=first)
            (loss.sum() / count).backward()
            if part.size:
                old_means.append(metrics.pop("old_means")[: part.size])
                metrics["loss"] = loss.detach().sum()
                found.append(torch.stack([metrics[key].float() for key in (*watched, *extreme)]))
                sizes.append(part.size)
        # The same keys on all processes, those without rows included.
        sums, worst = dict.fromkeys(watched, 0.0), dict.fromkeys(extreme, 0.0)
        for size, values in zip(sizes, torch.stack(found).tolist() if found else [], strict=True):
            of_part = dict(zip((*watched, *extreme), values, strict=True))
            for key in watched:
                sums[key] += of_part[key] * (1 if key == "loss" else size)
            for key in extreme:
                worst[key] = max(worst[key], of_part[key], key=lambda value: math.inf if math.isnan(value) else value)
        return sums, worst, torch.cat(old_means)

    def _fill_in(self, experience: Experience, rows: Tensor | None, conditioning: Conditioning) -> None:
        """Put the means of the computation that learns in place of the old means of the given rows.

        Those that `settled` computed stay, unless memory ran out since, so that parts have another shape now.
        """
        if rows is not None and self.world.any(self._settled_in != self.parts.states):
            longest = self._longest(len(rows))
            with self.world.together():
                means = self.micro_batch.fit(lambda: self._means(experience.take(rows), longest, conditioning))
            experience.old_means[send(rows, means.device)] = means

    def _means(self, experience: Experience, longest: int | None, conditioning: Conditioning) -> Tensor:
        """Return the policy's means [N, *latent] as learning computes them: in its shapes, and by the pass with gradient."""
        parts = self.parts.over(experience, longest)
        found = [self._means_of(part.experience, conditioning)[: part.size] for part in parts]
        return torch.cat([experience.old_means[:0], *found])

    @torch.enable_grad()
    def _means_of(self, part: Experience, conditioning: Conditioning) -> Tensor:
        # With gradient, although nobody asks for one: compiled networks and some kernels compute otherwise without.
        return self.policy.step(part.states, part.steps, conditioning.take(part.prompt_index))[1].detach()

    def _longest(self, count: int) -> int | None:
        """Return the states of the process that has the most, where all must go through as many micro-batches."""
        return int(self.world.largest(count)) if self.world.is_lockstep else None

    def _watched(self, first: bool) -> list[str]:
        """Return the metrics that are means over states; the loss is a sum."""
        kl = self.leash.coefficient and self.algorithm.kl_form == "loss"
        optional = {
            "kl": kl,
            "consistency": self.algorithm.consistency_coefficient,
            "importance": self.algorithm.importance_cap is not None and self.is_recomputed,
            "mismatch_kl": first,
        }
        return ["loss", "clip_fraction", "ratio_deviation", "kl_from_sampling", *(k for k, used in optional.items() if used)]

    def _extreme(self, first: bool) -> list[str]:
        """Return the metrics of which the largest counts."""
        return ["ratio_deviation_max", *(["mismatch_ratio_max"] if first else [])]

    def loss(
        self, part: Experience, conditioning: Conditioning, *, size: int | None = None, first: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of every state [n], carrying grad, and the means of what is worth watching, on the device.

        Args:
            size: how many rows are real, all of them where left out; the others do not count in what is watched.
            first: before the first update of a round: the old means are then the new ones, where they are recomputed.
        """
        settings, policy = self.algorithm, self.policy
        part = part.to(policy.denoiser.device)
        conditions = conditioning.take(part.prompt_index)
        predictions, means, stds = policy.step(part.states, part.steps, conditions)
        sampled = part.old_means if part.sampling_means is None else part.sampling_means
        old_means = means.detach() if first and self.is_recomputed else part.old_means
        scale, real = settings.log_prob_reduction, slice(size or None)
        log_ratio = gaussian.log_ratio(part.actions, old_means, means, stds, scale)
        if settings.loss == "ppo_clip":
            per_action = losses.ppo_clip(log_ratio, part.advantages, clip_range=settings.clip_range)
        else:  # REBEL's gradient has this form too, see `_judge_by_pairs`
            per_action = losses.reinforce(log_ratio, part.advantages)
        deviations = log_ratio.detach()[real].expm1().abs()
        metrics = {
            "old_means": old_means,
            "clip_fraction": (deviations > settings.clip_range).float().mean(),
            "ratio_deviation": deviations.mean(),
            "ratio_deviation_max": deviations.max(),
            "kl_from_sampling": gaussian.kl(means.detach()[real], old_means[real], stds[real], scale).mean(),
        }
        if first:
            metrics |= self.mismatch.of(part.actions[real], sampled[real], means.detach()[real], stds[real])
        if settings.importance_cap is not None and self.is_recomputed:
            # Before the first update the policy that learns is at the new means: `old_means` are those of sampling, or the same.
            weights = self.mismatch.weights(part.actions, sampled, means.detach() if first else old_means, stds)
            per_action = per_action * weights
            metrics["importance"] = weights[real].mean()
        loss = per_action.mean(1)
        if self.leash.coefficient and settings.kl_form == "loss":
            kl = gaussian.kl(means, self._reference_means(part.states, part.steps, conditions), stds, scale)
            loss = loss + losses.kl_penalty(kl, coefficient=self.leash.coefficient)
            metrics["kl"] = kl.detach()[real].mean()
        if settings.consistency_coefficient:
            if part.targets is None:
                raise ValueError("a consistency loss needs experience with targets")
            targets = part.targets
            repeated = predictions.unsqueeze(1).expand_as(targets).flatten(0, 1)
            distance = CONSISTENCY[settings.consistency_distance](repeated, targets.flatten(0, 1))
            distance = distance.unflatten(0, targets.shape[:2]).mean(1)
            loss = loss + self.consistency_coefficient * distance
            metrics["consistency"] = distance.detach()[real].mean()
        return loss * part.weights, metrics

    @torch.no_grad()
    def _reference_means(self, states: Tensor, steps: Tensor, conditions: Conditioning) -> Tensor:
        with self.policy.reference():
            return self.policy.step(states, steps, conditions)[1]

    def settled(self, experience: Experience, conditioning: Conditioning) -> Experience:
        """Return a round's experience with old means that the computation which learns gives, where they must come from there."""
        if not self.is_recomputed or experience.sampling_means is not None:
            return experience
        longest = self._longest(len(experience))
        with self.world.together():
            experience = experience.to(self.policy.denoiser.device)
            means = self.micro_batch.fit(lambda: self._means(experience, longest, conditioning))
        self._settled_in = self.parts.states
        return replace(experience, sampling_means=experience.old_means, old_means=means)

    @torch.no_grad()
    def reference_log_ratios(self, experience: Experience, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Return how much likelier each action was than under the base model, and the exact KL divergence per state.

        Their expectations are equal. In a reward it must be the log-ratio log pi(a|s) - log pi_ref(a|s): the divergence itself
        does not depend on the action, so its own gradient would be lost there.

        Args:
            experience: [N] states of the present policy, as `settled` returns them.

        Returns:
            [N, K] and [N], on the CPU.
        """
        scale, device = self.algorithm.log_prob_reduction, self.policy.denoiser.device
        experience = experience.to(device)
        ratios, divergences = [experience.advantages[:0]], [experience.weights[:0]]
        for part in self.parts.over(experience, self._longest(len(experience))):
            now, real = part.experience, slice(part.size)
            reference = self._reference_means(now.states, now.steps, conditioning.take(now.prompt_index))
            stds = self.policy.table.std[now.steps]
            ratios.append(-gaussian.log_ratio(now.actions, now.old_means, reference, stds, scale)[real])
            divergences.append(gaussian.kl(now.old_means, reference, stds, scale)[real])
        return torch.cat(ratios).cpu(), torch.cat(divergences).cpu()

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
        worths, index = minibatch.advantages.cpu(), minibatch.prompt_index.cpu()
        log_ratio = torch.zeros_like(worths) if first else self._log_ratios(minibatch, conditioning)
        gather = self.world.gather_rows
        owners, inverse = gather(whose).unique(return_inverse=True)
        actions = log_ratio.shape[1]
        totals = torch.zeros(len(owners), actions).index_add_(0, inverse, gather(log_ratio)).requires_grad_()
        worth = torch.zeros(len(owners), actions).index_copy_(0, inverse, gather(worths))
        prompts = torch.zeros(len(owners), dtype=torch.long).index_copy_(0, inverse, gather(index))
        comparable = torch.arange(len(owners)).repeat_interleave(actions) if actions > 1 else prompts
        one, other = losses.pair_by_prompt(comparable, rng).unbind(1)
        flat, rewards = totals.flatten(), worth.flatten()
        loss = losses.rebel(flat[one], flat[other], rewards[one], rewards[other], eta=self.algorithm.rebel_eta).sum()
        loss = loss / max(len(one), 1)
        (gradient,) = torch.autograd.grad(loss, totals)
        mine = torch.searchsorted(owners, whose)
        minibatch.advantages = (-gradient[mine] * count * actions).to(minibatch.advantages.device)
        return float(loss.detach())

    @torch.no_grad()
    def _log_ratios(self, experience: Experience, conditioning: Conditioning) -> Tensor:
        """Return log pi - log pi_old of all actions [N, K], on the CPU."""
        found = [experience.advantages[:0]]
        for part in self.parts.over(experience, self._longest(len(experience))):
            now = part.experience
            means, stds = self._means_of(now, conditioning), self.policy.table.std[now.steps]
            ratios = gaussian.log_ratio(now.actions, now.old_means, means, stds, self.algorithm.log_prob_reduction)
            found.append(ratios[: part.size])
        return torch.cat(found).cpu()

    def check(self, experience: Experience, conditioning: Conditioning) -> dict[str, float]:
        """Check, before the first update, what must hold on the first micro-batch, and change nothing.

        The ratio is 1 where the same states go through the network again, gradients reach the adapter, and the policy that
        learns is close to the one that sampled. A process without states only takes part in what concerns all, and returns
        nothing.

        Args:
            experience: [N] states of this process.

        Raises:
            PreflightError: if one of them does not hold.
        """
        if not len(experience) and not self.world.is_lockstep:
            return {}
        experience = experience.to(self.policy.denoiser.device)
        part = next(self.parts.over(experience, max(len(experience), 1)))
        now, real = part.experience, slice(part.size)
        if self.is_recomputed and now.sampling_means is None:
            now = replace(now, sampling_means=now.old_means, old_means=self._means_of(now, conditioning))
        self.optimisation.begin()
        loss, metrics = self.loss(now, conditioning, size=part.size)
        if loss.requires_grad:
            loss.sum().backward()
        gradients = {name: p.grad for name, p in self.policy.named_parameters.items() if p.grad is not None}
        reached = sum(torch.stack([gradient.any() for gradient in gradients.values()]).tolist()) if gradients else 0
        self.optimisation.begin()
        if not part.size:
            return {}
        deviation = float(metrics["ratio_deviation_max"])
        if not deviation <= 1e-5:
            raise PreflightError(self._not_the_same(deviation))
        if not reached and bool(now.advantages[real].any()):
            raise PreflightError(
                "no gradient reaches the adapter, so nothing would be learnt; check lora.target_modules and that the network's "
                "forward pass is not inside torch.no_grad()."
            )
        found = {"ratio_deviation": deviation, "parameters_with_gradient": float(reached)}
        if now.sampling_means is not None:
            stds = self.policy.table.std[now.steps]
            apart = self.mismatch.of(now.actions[real], now.sampling_means[real], now.old_means[real], stds[real])
            found |= {key: float(value) for key, value in apart.items()}
            self.mismatch.require_agreement(found, now.states[0].numel(), PreflightError)
        return found

    def _not_the_same(self, deviation: float) -> str:
        if self.is_recomputed:
            return (
                f"the network answers the same states twice with means that take the ratio off 1 by {deviation:.2e} (accepted: "
                "1e-5), so no ratio can be trusted. Switch dropout and other randomness in the network off."
            )
        return (
            f"before the first update the ratio of new to old policy is off 1 by {deviation:.2e} (accepted: 1e-5), so sampling and "
            "learning do not compute the same thing. Use algorithm.old_policy=learning if they only round otherwise; "
            "switch dropout and other randomness in the network off."
        )
