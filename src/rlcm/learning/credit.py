"""Who earned what: from the rewards of a round to the advantage of every action."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlcm.learning import advantages
from rlcm.learning.algorithm import AlgorithmSettings


class Credit:
    """Gives the actions of a round their advantages, those of all processes together.

    Letters: B trajectories of the round, A actions of each, K branches (A = 1 where K > 1).

    Args:
        group_size: how many comparable images stand side by side: the branches of a trajectory, or the trajectories of a
            prompt.
    """

    def __init__(self, settings: AlgorithmSettings, group_size: int) -> None:
        self.settings, self.group_size = settings, group_size
        self.statistics = advantages.PromptStatistics(
            settings.stat_buffer_size, settings.stat_min_count, normalise_std=settings.normalise_std
        )

    def scored_states(self, actions: int) -> list[int]:
        """Return which of a plain trajectory's A states have their predicted image scored: the first and every n-th after it."""
        every = self.settings.dense_every
        return advantages.scored_calls(actions + 1, every)[:-1] if every else []

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

    def advantages(self, returns: Tensor, prompts: Sequence[str], valid: Tensor) -> Tensor:
        """Return the advantages [B, A, K] of `returns`, each action compared with others drawn at the same step.

        Args:
            prompts: B strings, one a trajectory.
            valid: [B, K] bool; images that were not scored get 0 and count nowhere.
        """
        settings = self.settings
        kept = valid.flatten().nonzero().squeeze(1)
        named = [prompt for prompt in prompts for _ in range(valid.shape[1])]
        group = (torch.arange(valid.numel()) // self.group_size)[kept]
        columns = []
        for number, column in enumerate(returns.unbind(1)):
            rewards = column.flatten()[kept]
            if settings.advantage == "prompt_statistics":
                # Later steps have statistics of their own: what is still to come differs from step to step.
                keys = [named[i] + (f" (action {number})" if number else "") for i in kept.tolist()]
                found = self.statistics.advantages(keys, rewards)
            elif settings.advantage == "batch":
                found = advantages.batch(rewards, normalise_std=settings.normalise_std)
            else:
                estimator = advantages.group if settings.advantage == "group" else advantages.leave_one_out
                found = estimator(rewards, group, normalise_std=settings.normalise_std)
            result = torch.zeros(valid.numel())
            result[kept] = advantages.clip_advantages(found, settings.advantage_clip)
            columns.append(result.view(valid.shape))
        return torch.stack(columns, 1)

    def idle_groups(self, returns: Tensor, valid: Tensor) -> float:
        """Return the share of groups whose images all have the same return, so that they teach nothing."""
        kept = valid.flatten().nonzero().squeeze(1)
        group = (torch.arange(valid.numel()) // self.group_size)[kept]
        return advantages.zero_variance_groups(returns[:, 0].flatten()[kept], group) / len(group.unique())
