"""The policy gradient: the losses of actions, by the ratio of the policy that learns to the one that drew them."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcm.learning import losses
from rlcm.learning.steps import Updates
from rlcm.policy import gaussian
from rlcm.types import Conditioning, Experience

CONSISTENCY = {"huber": losses.consistency_huber, "l2": losses.consistency_l2}


class PolicyGradient(Updates):
    """Optimiser steps along a loss of actions. All steps of all images form one flat batch.

    PPO, divergence PPO, REINFORCE and REBEL (`algorithm.loss`), with the leash and the consistency loss beside them.
    """

    def _watched(self, first: bool) -> list[str]:
        kl = self.leash.coefficient and self.algorithm.kl_form == "loss"
        optional = {
            "kl": kl,
            "consistency": self.algorithm.consistency_coefficient,
            "importance": self.algorithm.importance_cap is not None and self.is_recomputed,
            "mismatch_kl": first,
        }
        return ["loss", "clip_fraction", "ratio_deviation", "kl_from_sampling", *(k for k, used in optional.items() if used)]

    def _extreme(self, first: bool) -> list[str]:
        return ["ratio_deviation_max", *(["mismatch_ratio_max"] if first else [])]

    def loss(
        self, part: Experience, conditioning: Conditioning, *, size: int | None = None, first: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings, policy = self.algorithm, self.policy
        part = part.to(policy.denoiser.device)
        conditions = conditioning.take(part.prompt_index)
        predictions, means, stds = policy.step(part.states, part.steps, conditions)
        sampled = part.old_means if part.sampling_means is None else part.sampling_means
        old_means = means.detach() if first and self.is_recomputed else part.old_means
        scale, real = settings.log_prob_reduction, slice(size or None)
        log_ratio = gaussian.log_ratio(part.actions, old_means, means, stds, scale)
        if settings.loss == "ppo_clip":
            if settings.normalise_ratio:
                log_ratio = gaussian.normalised_log_ratio(part.actions, old_means, means, stds, scale)
            per_action = losses.ppo_clip(log_ratio, part.advantages, clip_range=settings.clip_range)
        elif settings.loss == "divergence_ppo":
            moved = gaussian.kl(means.detach(), old_means, stds, scale)
            per_action = losses.divergence_ppo(log_ratio, part.advantages, moved, limit=settings.divergence_limit)
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

    def _apart(self, part: Experience, real: slice) -> dict[str, float]:
        if part.sampling_means is None:
            return {}
        stds = self.policy.table.std[part.steps]
        found = self.mismatch.of(part.actions[real], part.sampling_means[real], part.old_means[real], stds[real])
        return {key: float(value) for key, value in found.items()}

    def _prepared(
        self, minibatch: Experience, whose: Tensor, conditioning: Conditioning, rng: torch.Generator, count: int, first: bool
    ) -> dict[str, float]:
        if self.algorithm.loss != "rebel":
            return {}
        return {"rebel_loss": self._judge_by_pairs(minibatch, whose, conditioning, rng, count, first)}

    def _judge_by_pairs(
        self, minibatch: Experience, whose: Tensor, conditioning: Conditioning, rng: torch.Generator, count: int, first: bool
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
