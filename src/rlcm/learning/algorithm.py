"""How rewards become a change of the weights: the settings, and the leash that keeps the policy near the base model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from rlcm.learning import losses
from rlcm.policy.gaussian import Reduction
from rlcm.settings import Settings
from rlcm.yaml_text import meant

FORWARD = ("awm", "nft")
"""Losses that learn from finished images, noised again, in place of actions."""


class AlgorithmSettings(Settings):
    """How rewards become a change of the weights."""

    loss: Literal["ppo_clip", "divergence_ppo", "reinforce", "rebel", "awm", "nft", "reward_backprop"] = "ppo_clip"
    """`ppo_clip`: PPO's clipped surrogate. `divergence_ppo`: a trust region in the KL divergence in place of the clip. `reinforce`:
    the plain score function, for one update a round. `rebel`: regression of relative rewards on pairs of images of one prompt.
    `awm` and `nft`: the finished images, noised again and weighed by their advantages; where left open, `optimizer.lr` is then
    0.003, `rollout.batch_size` 64, `rollout.branches` 1 and `rollout.images_per_prompt` 4 (1 with branches).
    `reward_backprop`: the gradient of the reward itself, for rewards that have one."""
    old_policy: Literal["auto", "sampling", "learning"] = "auto"
    """What computes the mean of the old policy, to which the ratio is taken. `sampling`: the pass that sampled. `learning`: the
    pass that learns, in its own batch shapes, so that the ratio begins at exactly 1 whatever the precision. `auto` is `sampling`
    in fp32 on a CPU, where the two differ by a last bit at most, and `learning` everywhere else."""
    importance_cap: float | None = Field(default=None, ge=1, le=1_000_000)
    """Where set, every action is weighed by the ratio of the policy that learns to the one that sampled, at most this (truncated
    importance sampling, on the scale of `log_prob_reduction`): what they differ by in rounding is then made up for."""
    clip_range: float = Field(default=1e-4, gt=0, le=1_000_000)
    """PPO's epsilon, on the scale of `log_prob_reduction`."""
    normalise_ratio: bool = False
    """`ppo_clip`: clip the ratio without its bias and its step's std, so that one clip range holds all steps and signs alike."""
    divergence_limit: float = Field(default=1e-4, gt=0, le=1_000_000)
    """`divergence_ppo`: KL divergence from the policy that sampled, on the scale of `log_prob_reduction`, beyond which an action
    counts only where it leads back."""
    nft_beta: float = Field(default=1.0, gt=0, le=1000)
    """`nft`: how far its positive and negative policies lie from the one that sampled, as a share of the policy's own change."""
    noise_levels: int = Field(default=1, ge=1, le=1000)
    """`awm`, `nft`: at how many of the sampler's noise levels each image is noised again in a round."""
    last_call_weight: float = Field(default=0.0, ge=0, le=1_000_000)
    """Where above 0, the reward's own gradient through the last network call is followed too, with this weight, for rewards that
    have one: the noisy steps learn from the policy gradient, the last one from the reward itself."""
    log_prob_reduction: Reduction = "mean"
    """What log-probabilities are divided by: `mean` the number D of latent entries (published), `sqrt` its root (the same
    clip range then fits all resolutions), `sum` nothing."""
    rebel_eta: float = Field(default=1e-3, ge=1e-12, le=1_000_000)
    """REBEL's step size, on the scale of `log_prob_reduction`: the larger, the further the policy goes for a reward."""
    backprop_calls: int = Field(default=1, ge=1, le=1000)
    """`reward_backprop`: how many network calls at the end of the trajectory the gradient goes through."""
    advantage: Literal["auto", "prompt_statistics", "group", "leave_one_out", "batch"] = "auto"
    """What a reward is compared with: `prompt_statistics` the running mean and std of its prompt (published); `group` and
    `leave_one_out` the other images of the same prompt or branch point; `batch` all images of the round. `auto` is `group` where a
    round has several images of a prompt or branch point, and `prompt_statistics` elsewhere."""
    normalise_std: bool = True
    """Divide advantages by the standard deviation of what they are compared with."""
    multi_reward: Literal["sum", "gdpo"] = "sum"
    """How several rewards become one advantage. `sum`: they are weighted and summed, and the sum is compared. `gdpo`: each is
    compared and divided by its own standard deviation, then they are weighted and summed, and the sum is brought to mean 0 and
    standard deviation 1 over the round; so a rare, hard reward counts beside an easy, smooth one."""
    advantage_clip: float = Field(default=10.0, gt=0, le=1_000_000)
    """Advantages are clamped to plus or minus this."""
    stat_buffer_size: int = Field(default=32, ge=1, le=1_000_000)
    """Rewards remembered for a prompt."""
    stat_min_count: int = Field(default=16, ge=1, le=1_000_000)
    """Rewards a prompt needs before its own statistics are used instead of the batch's."""
    dense_every: int = Field(default=0, ge=0, le=1000)
    """Score the predicted image of the first and every n-th later state as well, so that an action is credited with what it
    added; 0 scores final images only."""
    dense_lambda: float = Field(default=1.0, ge=0, le=1)
    """How far ahead an action of a densely rewarded trajectory is credited: 1 up to the final image, 0 by the next prediction."""
    minibatches: int = Field(default=1, ge=1, le=1_000_000)
    """Optimiser steps into which a round's images are divided."""
    inner_epochs: int = Field(default=1, ge=1, le=10_000)
    """Passes over a round's images."""
    stop_kl: float | None = Field(default=None, gt=0)
    """Leave out the remaining optimiser steps of a round once the policy's KL divergence from the one that sampled, per step,
    exceeds this."""
    kl_coefficient: float = Field(default=0.1, ge=0, le=1_000_000)
    """The leash: weight of the KL divergence from the base model, per step, on the scale of `log_prob_reduction`."""
    kl_form: Literal["loss", "reward"] = "loss"
    """Where the divergence counts: `loss` exactly, by its own gradient; `reward` as log-ratios subtracted from the rewards."""
    kl_target: float | None = Field(default=0.005, gt=0)
    """Where set, the weight grows while the divergence exceeds this, by up to a tenth a round, and falls back below it, but
    never under `kl_coefficient`."""
    consistency_coefficient: float = Field(default=0.0, ge=0, le=1_000_000)
    """Weight of the distance between the predicted image of a state and what its trajectory came to: keeps few-step samples
    good; 0 is off."""
    consistency_target: Literal["final", "next"] = "final"
    """What it came to: `final` the end of the trajectory, `next` the prediction of the next call."""
    consistency_distance: Literal["huber", "l2"] = "huber"
    """`huber`: pseudo-Huber; `l2`: mean squared difference."""
    consistency_schedule: Literal["constant", "linear"] = "constant"
    """`linear` rises from 0 to the full weight over the run."""

    @model_validator(mode="before")
    @classmethod
    def _without_a_leash(cls, values: Any) -> Any:
        """Leave out the target of a leash that there is none of."""
        off = isinstance(values, Mapping) and "kl_target" not in values and meant(values.get("kl_coefficient", 1)) == 0
        return {**values, "kl_target": None} if off else values

    @model_validator(mode="after")
    def _fits(self) -> AlgorithmSettings:
        if self.stat_min_count > self.stat_buffer_size:
            raise ValueError(
                f"algorithm.stat_min_count={self.stat_min_count} is above algorithm.stat_buffer_size={self.stat_buffer_size}, so no "
                "prompt would ever have enough; lower it."
            )
        if self.loss == "reinforce" and self.minibatches * self.inner_epochs > 1:
            raise ValueError(
                "algorithm.loss=reinforce holds for one update a round: set algorithm.minibatches=1 and "
                "algorithm.inner_epochs=1, or use ppo_clip."
            )
        if self.kl_target is not None and not self.kl_coefficient:
            raise ValueError(
                f"algorithm.kl_target={self.kl_target} needs a weight to start from; set algorithm.kl_coefficient above 0, or, for no "
                "leash at all, algorithm.kl_target=null with optimizer.max_pace=1."
            )
        if self.dense_every and self.loss == "rebel":
            raise ValueError(
                f"algorithm.dense_every={self.dense_every} rewards single actions, but algorithm.loss=rebel compares whole "
                "trajectories; set algorithm.dense_every=0, or use ppo_clip."
            )
        if self.kl_form == "reward" and self.loss == "rebel":
            raise ValueError(
                "algorithm.kl_form=reward charges single actions, but algorithm.loss=rebel compares whole trajectories; set "
                "algorithm.kl_form=loss."
            )
        if self.normalise_ratio and self.loss != "ppo_clip":
            raise ValueError(
                f"algorithm.normalise_ratio=true is for the clip of algorithm.loss=ppo_clip, and algorithm.loss={self.loss} clips no "
                "ratio of actions; set algorithm.normalise_ratio=false."
            )
        if self.last_call_weight and self.minibatches * self.inner_epochs > 1:
            raise ValueError(
                f"algorithm.last_call_weight={self.last_call_weight:g} follows the reward's gradient in one update a round; set "
                "algorithm.minibatches=1 and algorithm.inner_epochs=1."
            )
        if self.importance_cap is not None and self.old_policy == "sampling":
            raise ValueError(
                f"algorithm.importance_cap={self.importance_cap} weighs the policy that learns against the one that sampled, but with "
                "algorithm.old_policy=sampling the ratio does so already; leave it out, or use algorithm.old_policy=learning."
            )
        if self.importance_cap is not None and self.loss == "rebel":
            raise ValueError(
                f"algorithm.importance_cap={self.importance_cap} corrects a mean over actions, but algorithm.loss=rebel is a "
                "regression, which holds wherever its actions come from; leave it out, or use ppo_clip."
            )
        if self.multi_reward == "gdpo" and not self.normalise_std:
            raise ValueError(
                "algorithm.multi_reward=gdpo divides every reward by its own standard deviation, which algorithm.normalise_std=false "
                "leaves out; set algorithm.normalise_std=true, or algorithm.multi_reward=sum."
            )
        if self.multi_reward == "gdpo" and self.kl_form == "reward" and self.kl_coefficient:
            raise ValueError(
                "algorithm.multi_reward=gdpo compares rewards one by one, and algorithm.kl_form=reward takes the divergence off their "
                "sum; set algorithm.kl_form=loss, or algorithm.multi_reward=sum."
            )
        if self.loss in _WITHOUT_ACTIONS:
            self._without_actions(*_WITHOUT_ACTIONS[self.loss])
        return self

    @property
    def is_forward(self) -> bool:
        """Whether finished images are learnt from, noised again, in place of actions."""
        return self.loss in FORWARD

    @property
    def follows_reward(self) -> bool:
        """Whether the gradient of the reward itself is followed, so that it must have one."""
        return self.loss == "reward_backprop" or self.last_call_weight > 0

    def _without_actions(self, why: str, needless: tuple[str, ...]) -> None:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        for name in needless:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"algorithm.{name}={getattr(self, name)} has no meaning for algorithm.loss={self.loss}, which {why}; leave it "
                    "at its default."
                )


_OF_ACTIONS = ("dense_every", "consistency_coefficient", "importance_cap", "kl_form")
_WITHOUT_ACTIONS = {
    "reward_backprop": (
        "follows the reward's own gradient in one update a round",
        ("minibatches", "inner_epochs", "stop_kl", "multi_reward", "last_call_weight", *_OF_ACTIONS),
    ),
    **dict.fromkeys(FORWARD, ("learns from finished images and not from actions", _OF_ACTIONS)),
}
"""Settings that a loss has no use for, and why."""


class Leash:
    """The weight of the KL divergence from the base model and the pace of learning; both follow a target where there is one.

    Args:
        settings: kl_coefficient and kl_target.
        most: factor by which the learning rate may leave its schedule, either way, >= 1.
    """

    def __init__(self, settings: AlgorithmSettings, most: float = 1.0) -> None:
        self.least, self.target, self.most = settings.kl_coefficient, settings.kl_target, most
        self.coefficient, self.pace = settings.kl_coefficient, 1.0

    def take_up(self, coefficient: float, pace: float) -> None:
        """Go on with the weight and the pace of an earlier run.

        Raises:
            ValueError: if no leash can have had them.
        """
        if not (0 <= coefficient < math.inf and 0 < pace < math.inf):
            raise ValueError(f"a leash of weight {coefficient} and pace {pace}")
        self.coefficient, self.pace = coefficient, pace

    def follow(self, kl: float, progress: float) -> None:
        """Adapt weight and pace to the divergence that a round measured; see `rlcm.learning.losses.adaptive_coefficient`.

        Args:
            kl: of the round, per step.
            progress: share of the run that is over with this round, 0 < progress <= 1: that much of the target it may have used.
        """
        if self.target is None:
            return
        self.coefficient = losses.adaptive_coefficient(self.coefficient, kl, self.target, minimum=self.least)
        self.pace = 1 / losses.adaptive_coefficient(
            1 / self.pace, kl, self.target * progress, minimum=1 / self.most, maximum=self.most
        )
