"""From rewards to advantages: baselines, per-prompt statistics, dense rewards and the choice of the branch step.

Statistics are taken in float64 on the CPU over ALL images of a round (gather the processes' rewards first); answers are
float32 on the rewards' device and never carry gradient. Standard deviations are those of the population (divided by n).
"""

from __future__ import annotations

from rlcm.learning.advantages.baselines import batch, clip_advantages, group, leave_one_out, zero_variance_groups
from rlcm.learning.advantages.branch_steps import BranchSchedule, branch_probabilities, choose_branch_steps
from rlcm.learning.advantages.dense_rewards import gae, hold_potentials, reward_to_go, scored_calls, shaped_rewards
from rlcm.learning.advantages.prompt_statistics import PromptStatistics
from rlcm.learning.advantages.standardising import EPS

__all__ = [
    "EPS",
    "BranchSchedule",
    "PromptStatistics",
    "batch",
    "branch_probabilities",
    "choose_branch_steps",
    "clip_advantages",
    "gae",
    "group",
    "hold_potentials",
    "leave_one_out",
    "reward_to_go",
    "scored_calls",
    "shaped_rewards",
    "zero_variance_groups",
]
