"""Optimiser steps: from a round's states to steps along a loss, whatever it is. There is no loop over images or denoising steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rlcm.errors import PreflightError
from rlcm.learning.algorithm import AlgorithmSettings, Leash
from rlcm.learning.micro_batches import MicroBatches
from rlcm.learning.mismatch import Mismatch, computes_alike
from rlcm.learning.optimisation import Optimisation
from rlcm.processes.memory_retry import BatchSize
from rlcm.transfer import send
from rlcm.types import Conditioning, Experience


class Updates(ABC):
    """Turns a round's experience into optimiser steps; what is stepped along is its child's `loss`.

    What the policy answered to a state before the round's first step, its old mean, comes from the computation that gives the new
    one, wherever that may round otherwise than sampling does (`algorithm.old_policy`): before the first update of a round it IS
    the new mean. So the ratio is 1 there by construction, in every precision, on every device and at every pair of batch sizes.

    Args:
        micro_batch_size: states a forward and backward pass takes; memory grows with it, the result does not depend on it.
        planned: states of a minibatch of this process, if no image is dropped; see `MicroBatches`.
    """

    answer: ClassVar[int] = 1
    """Which answer of `Policy.step` old and new are compared in: 1 the mean of the next latent, 0 the predicted x_0."""

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
        recomputed = algorithm.old_policy == "learning" or (algorithm.old_policy == "auto" and not alike)
        self.is_recomputed = recomputed or self.answer == 0  # sampling keeps means only
        """Whether old means come from the computation that learns, and not from the one that sampled."""
        noisy = self.policy.noisy_steps
        self.parts = MicroBatches(
            self.micro_batch, planned, is_padded=self.is_recomputed, noisy_step=int(noisy[0]) if len(noisy) else 0
        )
        self._settled_in = 0  # states of a part, when a round's old means were all computed before its update
        self.mismatch = Mismatch(algorithm)
        self.consistency_coefficient = algorithm.consistency_coefficient

    @abstractmethod
    def loss(
        self, part: Experience, conditioning: Conditioning, *, size: int | None = None, first: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of every state [n], carrying grad, and the means of what is worth watching, on the device.

        Among these are `old_means`, those that the loss was taken with, and `ratio_deviation_max`.

        Args:
            size: how many rows are real, all of them where left out; the others do not count in what is watched.
            first: before the first update of a round: the old means are then the new ones, where they are recomputed.
        """

    @abstractmethod
    def _watched(self, first: bool) -> list[str]:
        """Return the metrics that are means over states; the loss is a sum."""

    @abstractmethod
    def _extreme(self, first: bool) -> list[str]:
        """Return the metrics of which the largest counts."""

    def _prepared(
        self, minibatch: Experience, whose: Tensor, conditioning: Conditioning, rng: torch.Generator, count: int, first: bool
    ) -> dict[str, float]:
        """Make a minibatch ready to learn from, and return what is worth noting of it."""
        return {}

    def _apart(self, part: Experience, real: slice) -> dict[str, float]:
        """Return how far the policy that learns is from the one that sampled, if that matters."""
        return {}

    def update(
        self,
        experience: Experience,
        whose: Tensor,
        trajectories: int,
        conditioning: Conditioning,
        rng: torch.Generator,
        lr: float,
        progress: float = 0.0,
        also: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Learn from a round and return its metrics.

        Args:
            experience: this process's states.
            whose: [N] the index, among the round's trajectories of all processes, of the trajectory of each state.
            trajectories: of the round, over all processes.
            rng: the same on all processes; it deals the trajectories into minibatches.
            lr: learning rate of this round.
            progress: share of the run that is over, 0 .. 1.
            also: adds gradients of its own, so many images at once, to those of the round's only step.

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
            metrics = self._optimiser_step(
                experience, rows, whose[rows], conditioning, rng, first=taken == 0, others=others, also=also
            )
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
        also: Callable[[int], None] | None,
    ) -> dict[str, float]:
        """Take an optimiser step along a minibatch, unless it must be left out, and return the metrics.

        Args:
            experience: of the round, on the device; where its old means are to be recomputed, the first step fills them in.
            rows: [n] of the minibatch, as `whose` is.
            first: whether it is the round's first step, when the policy is still the one that sampled.
            others: in the first step, the rows that are not in its minibatch: their old means are filled in before it is taken.
            also: see `update`.
        """
        minibatch = experience.take(rows)
        count = int(self.world.sum(torch.tensor([len(minibatch)])))
        if not count:  # the images of this minibatch were all dropped
            self._fill_in(experience, others, conditioning)
            return {"skipped_updates": 1.0}
        extra = self._prepared(minibatch, whose, conditioning, rng, count, first)
        most = self._longest(len(minibatch))

        def gradients() -> tuple[dict[str, float], dict[str, float], Tensor]:
            found = self._gradients(minibatch, most, conditioning, count, first)
            if also is not None:
                also(self.micro_batch.size)
            return found

        with self.world.together():
            sums, worst, means = self.micro_batch.fit(gradients)
        if first and self.is_recomputed:
            experience.old_means[send(rows, means.device)] = means
        self._fill_in(experience, others, conditioning)
        norm = self.optimisation.gather_gradients()
        largest = {key: self.world.largest(worst[key]) for key in sorted(worst)}
        keys = sorted(sums)
        reduced = self.world.sum(torch.tensor([sums[key] for key in keys], dtype=torch.float64)) / count
        metrics = dict(zip(keys, reduced.tolist(), strict=True)) | largest | extra
        if first and math.isfinite(metrics.get("mismatch_kl", math.nan)):
            # Where it is not finite, the loss is not either, and the step is left out.
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
        answers = self.policy.step(part.states, part.steps, conditioning.take(part.prompt_index))
        return answers[self.answer].detach()

    def _longest(self, count: int) -> int | None:
        """Return the states of the process that has the most, where all must go through as many micro-batches."""
        return int(self.world.largest(count)) if self.world.is_lockstep else None

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
        found = {"ratio_deviation": deviation, "parameters_with_gradient": float(reached)} | self._apart(now, real)
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
