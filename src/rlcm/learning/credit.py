"""Who earned what: from the rewards of a round to the advantage of every action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlcm.learning import advantages
from rlcm.learning.algorithm import AlgorithmSettings
from rlcm.rewards import Scores


class Credit:
    """Gives the actions of a round their advantages, those of all processes together.

    Letters: B trajectories of the round, A actions of each, K branches (A = 1 where K > 1).

    Args:
        group_size: how many comparable images stand side by side: the branches of a trajectory, or the trajectories of a
            prompt.
    """

    def __init__(self, settings: AlgorithmSettings, group_size: int) -> None:
        self.settings, self.group_size = settings, group_size
        several = "group" if group_size > 1 else "prompt_statistics"
        self.compared_with = several if settings.advantage == "auto" else settings.advantage
        self.statistics = advantages.PromptStatistics(
            settings.stat_buffer_size, settings.stat_min_count, normalise_std=settings.normalise_std
        )

    def scored_states(self, actions: int) -> list[int]:
        """Return which of a plain trajectory's A states have their predicted image scored: the first and every n-th after it."""
        every = self.settings.dense_every
        return advantages.scored_calls(actions + 1, every)[:-1] if every else []

    @property
    def is_decoupled(self) -> bool:
        """Whether rewards are compared one by one."""
        return self.settings.multi_reward == "gdpo"

    def returns_of(
        self, scores: Scores, shape: tuple[int, int], ahead: Scores | None = None, charges: Tensor | None = None
    ) -> Tensor:
        """Return what followed every action by the sum of the rewards [B, A, K], or by each of R rewards [B, A, K, R].

        Args:
            scores: of the final images, B K.
            shape: B and A.
            ahead: of the predicted images of the `scored_states`, B S; plain trajectories only.
            charges: [B, A, K] what every action costs.
        """
        count, actions = shape

        def followed(final: Tensor, before: Tensor | None) -> Tensor:
            potentials = None if before is None else before.view(count, -1)
            return self.returns(final.view(count, -1), actions, potentials, charges)

        if not self.is_decoupled:
            return followed(scores.total, None if ahead is None else ahead.total)
        each = [followed(values, None if ahead is None else ahead.parts[name]) for name, values in scores.parts.items()]
        return torch.stack(each, -1)

    def returns(self, rewards: Tensor, actions: int, potentials: Tensor | None = None, charges: Tensor | None = None) -> Tensor:
        """Return what followed every action, higher is better.

        Args:
            rewards: [B, K] of the final images.
            actions: A.
            potentials: [B, S] rewards of the predicted images of the `scored_states`; plain trajectories only.
            charges: [B, A, K] what every action costs.

        Returns:
            [B, A, K], or [B, 1, K] where all actions of a trajectory share one number.
        """
        if potentials is None and charges is None:
            return rewards.unsqueeze(1)
        if potentials is None:
            earned = torch.zeros(len(rewards), actions, rewards.shape[1])
            earned[:, -1] = rewards
        else:
            scored = [*self.scored_states(actions), actions]
            held = advantages.hold_potentials(torch.cat((potentials, rewards), dim=1), scored, actions + 1)
            earned = advantages.shaped_rewards(held)[:, 1:].unsqueeze(2)
        if charges is not None:
            earned = earned - charges
        each = earned.transpose(1, 2).flatten(0, 1)  # [B K, A]
        lam = 1.0 if potentials is None else self.settings.dense_lambda
        return advantages.gae(each, torch.zeros_like(each), 1.0, lam).unflatten(0, rewards.shape).transpose(1, 2)

    def advantages(
        self, returns: Tensor, prompts: Sequence[str], valid: Tensor, weights: Mapping[str, float] | None = None
    ) -> Tensor:
        """Return the advantages [B, A, K] of `returns`, each action compared with others drawn at the same step.

        With several rewards, GDPO (Liu et al. 2026, arXiv:2601.05242): compared one by one, then summed, then standardised.

            A_r = compared(returns of r);   S = sum_r w_r A_r;   A = (S - mean S) / (std S + 1e-6) over the round

        Args:
            returns: [B, A, K]; of R rewards one by one [B, A, K, R].
            prompts: B strings, one a trajectory.
            valid: [B, K] bool; images that were not scored get 0 and count nowhere.
            weights: of the R rewards by name, in their order; None: `returns` are those of the sum.
        """
        kept = valid.flatten().nonzero().squeeze(1)
        named = [prompt for prompt in prompts for _ in range(valid.shape[1])]
        asked = [named[i] for i in kept.tolist()]
        group = (torch.arange(valid.numel()) // self.group_size)[kept]
        columns = []
        for number, column in enumerate(returns.unbind(1)):
            # Later steps have statistics of their own: what is still to come differs from step to step.
            of_step = f" (action {number})" if number else ""
            if weights is None:
                found = self._compared(column.flatten()[kept], asked, of_step, group)
            else:
                found = torch.zeros(len(kept))
                for place, (name, weight) in enumerate(weights.items()):
                    rewards = column[..., place].flatten()[kept]
                    found = found + weight * self._compared(rewards, asked, of_step + (f" ({name})" if place else ""), group)
                found = advantages.batch(found)
            result = torch.zeros(valid.numel())
            result[kept] = advantages.clip_advantages(found, self.settings.advantage_clip)
            columns.append(result.view(valid.shape))
        return torch.stack(columns, 1)

    def idle_groups(self, returns: Tensor, valid: Tensor) -> float:
        """Return the share of groups whose images all have the same return (the same R returns), so that they teach nothing."""
        kept = valid.flatten().nonzero().squeeze(1)
        group = (torch.arange(valid.numel()) // self.group_size)[kept]
        _, alike = returns[:, 0].reshape(valid.numel(), -1)[kept].unique(dim=0, return_inverse=True)
        return advantages.zero_variance_groups(alike, group) / len(group.unique())

    def _compared(self, rewards: Tensor, prompts: Sequence[str], statistics: str, group: Tensor) -> Tensor:
        """Return the advantages [M] of one reward [M] at one step.

        Args:
            prompts: M.
            statistics: what tells the prompts' statistics of this reward and step from others.
            group: [M].
        """
        settings = self.settings
        if self.compared_with == "prompt_statistics":
            return self.statistics.advantages([prompt + statistics for prompt in prompts], rewards)
        if self.compared_with == "batch":
            return advantages.batch(rewards, normalise_std=settings.normalise_std)
        estimator = advantages.group if self.compared_with == "group" else advantages.leave_one_out
        return estimator(rewards, group, normalise_std=settings.normalise_std)
