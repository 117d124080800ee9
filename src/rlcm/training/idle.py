"""Settings that are given and change nothing beside the others."""

from __future__ import annotations

from collections.abc import Callable

from rlcm.settings import leaves
from rlcm.training.config import TrainConfig
from rlcm.training.values import assignment

_Rule = tuple[str, tuple[str, ...], Callable[[TrainConfig], object]]


def _of_loss(setting: str, *losses: str) -> _Rule:
    purpose = " or ".join(f"algorithm.loss={loss}" for loss in losses)
    return purpose, (f"algorithm.{setting}",), lambda config: config.algorithm.loss in losses


_RULES: tuple[_Rule, ...] = (
    _of_loss("clip_range", "ppo_clip", "awm"),
    _of_loss("divergence_limit", "divergence_ppo"),
    _of_loss("nft_beta", "nft"),
    _of_loss("noise_levels", "awm", "nft"),
    _of_loss("rebel_eta", "rebel"),
    _of_loss("backprop_calls", "reward_backprop"),
    (
        "a loss that compares rewards with one another",
        tuple(
            f"algorithm.{name}"
            for name in ("advantage", "normalise_std", "advantage_clip", "stat_buffer_size", "stat_min_count")
        ),
        lambda config: config.algorithm.loss != "reward_backprop",
    ),
    ("algorithm.dense_every above 0", ("algorithm.dense_lambda",), lambda config: config.algorithm.dense_every),
    (
        "algorithm.consistency_coefficient above 0",
        ("algorithm.consistency_target", "algorithm.consistency_distance", "algorithm.consistency_schedule"),
        lambda config: config.algorithm.consistency_coefficient,
    ),
    ("rollout.branches above 1", ("rollout.branch_schedule",), lambda config: config.rollout.branches > 1),
    ("evaluation.every above 0", ("evaluation.patience",), lambda config: config.evaluation.every),
    (
        "evaluation.every above 0, or evaluation.final=best",
        ("evaluation.least",),
        lambda config: config.evaluation.every or config.evaluation.final == "best",
    ),
    (
        "a loss of actions, such as algorithm.loss=ppo_clip",
        ("algorithm.old_policy",),
        lambda config: not (config.algorithm.is_forward or config.algorithm.loss == "reward_backprop"),
    ),
)
"""What settings are for, which they are, and whether a configuration has it."""


def idle_settings(config: TrainConfig) -> list[str]:
    """Return what differs from its default and has no effect, a sentence each."""
    fields = dict(leaves(TrainConfig))
    found = []
    for purpose, names, is_there in _RULES:
        for name in names if not is_there(config) else ():
            group, _, leaf = name.partition(".")
            value = getattr(getattr(config, group), leaf)
            if value != fields[name].get_default(call_default_factory=True):
                found.append(f"{assignment(name, value)} has no effect: it is for {purpose}")
    return found
