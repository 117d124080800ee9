"""What a small round of the run shows the doctor: reward, ratio, gradients, speed."""

from __future__ import annotations

import math

from rlcm.doctor.findings import Finding
from rlcm.learning.mismatch import WORTH_A_WARNING, remedy, standard_distance
from rlcm.pipelines.precision import resolve
from rlcm.training.config import TrainConfig
from rlcm.training.fitting import sampled_at_once
from rlcm.training.trainer import Trainer

IMAGES_ON_CPU = 8
GROUPS_ON_CPU = 4


def small(config: TrainConfig) -> TrainConfig:
    """Return the configuration with fewer images a round, one update, and everything that decides success as it is."""
    rollout, algorithm = config.rollout, config.algorithm
    group = rollout.branches * rollout.images_per_prompt
    few = IMAGES_ON_CPU if group == 1 else GROUPS_ON_CPU * group
    enough = sampled_at_once(rollout) if resolve(config.model)[0].type == "cuda" else min(few, rollout.batch_size)
    images = -(-enough // group) * group
    return config.model_copy(
        update={
            "rollout": rollout.model_copy(update={"batch_size": images}),
            "algorithm": algorithm.model_copy(update={"minibatches": 1, "inner_epochs": 1}),
        }
    )


def first_round(trainer: Trainer, config: TrainConfig) -> list[Finding]:
    """Play one small round (two on a GPU, where the first one warms up) and return what it showed.

    Raises:
        RLCMError: what would stop the run itself.
    """
    found = trainer.round()
    states = (
        trainer.config.rollout.batch_size
        // config.rollout.branches
        * (1 if config.rollout.branches > 1 else len(trainer.parts.policy.table.noisy_steps()))
    )
    # The first round's update comes after a check on its first micro-batch, which takes as long as learning from it; and a third
    # longer where old means are computed anew, by a pass more.
    update = trainer.learner.update
    checked = min(states, update.parts.states) * (4 / 3 if update.is_recomputed else 1)
    found["time/update"] *= states / (states + checked)
    if trainer.parts.policy.denoiser.device.type == "cuda":
        steady = trainer.round()
        found |= {key: value for key, value in steady.items() if key.startswith("time/")}
    images = trainer.config.rollout.batch_size
    dropped = int(found["dropped_images"])
    deviation, norm = found.get("ratio_deviation_max", float("nan")), found.get("grad_norm", float("nan"))
    return [
        Finding(
            "reward",
            f"{found['reward']:.4g} +- {found['reward_std']:.2g} on {images} images"
            + (f", {dropped} more could not be scored" if dropped else ""),
            not dropped,
            f"rewards: {dropped} of {images} images could not be scored; mend the reward or its server.",
            {"mean": found["reward"], "std": found["reward_std"], "dropped": dropped},
        ),
        Finding(
            "ratio",
            f"off 1 by {deviation:.1e} at the first minibatch",
            deviation <= 1e-5,
            "sampling and learning do not compute the same thing; use algorithm.old_policy=learning.",
            {"deviation": deviation},
        ),
        *_mismatch(found, trainer),
        Finding(
            "gradients",
            f"norm {norm:.2e}",
            norm > 0 and not found["skipped_updates"],
            f"the first update was left out because its gradient is not finite or zero; lower optimizer.lr={config.optimizer.lr} "
            "or use model.precision=fp32.",
            {"norm": norm},
        ),
        speed(found, images, len(trainer.parts.evaluator.table), config, again=update.is_recomputed),
    ]


def _mismatch(found: dict[str, float], trainer: Trainer) -> list[Finding]:
    """Return how far the policy that learns is from the one that sampled, where rounding sets them apart."""
    if "mismatch_kl" not in found:
        return []
    distance = standard_distance(found["mismatch_kl"], math.prod(trainer.parts.policy.denoiser.latent_shape))
    return [
        Finding(
            "mismatch",
            f"sampling and learning are {distance:.1e} standard deviations of an action apart (KL {found['mismatch_kl']:.1e} nats "
            f"an action, ratio off 1 by {found['mismatch_ratio_max']:.1e})",
            distance <= WORTH_A_WARNING,
            f"sampling and learning round so differently that an action's mean moves by {distance:.2g} of its standard deviation "
            f"(accepted: {WORTH_A_WARNING}): {remedy(trainer.config.algorithm)}.",
            {"kl": found["mismatch_kl"], "ratio_deviation": found["mismatch_ratio_max"], "standard_distance": distance},
        )
    ]


def speed(found: dict[str, float], images: int, steps: int, config: TrainConfig, *, again: bool = False) -> Finding:
    """Return images per second by phase, and how long the whole run will take at that speed.

    Args:
        found: a round's metrics.
        images: that it sampled.
        steps: network calls of one image in an evaluation, which never branches.
        config: of the whole run.
        again: whether the old means of all minibatches but the first take a forward pass more: a third of learning from them.
    """
    passes = config.algorithm.inner_epochs + (again and (1 - 1 / config.algorithm.minibatches) / 3)
    sample, update = found["time/sample"] / images, passes * found["time/update"] / images
    a_round = (sample + update + found["time/reward_wait"] / images) * config.rollout.batch_size
    rounds = config.run.rounds
    if config.run.time_limit_minutes is not None:
        rounds = min(rounds, math.ceil(config.run.time_limit_minutes * 60 / a_round))
    evaluations = config.evaluation.times(rounds)
    calls = found["network_calls"] / images  # fewer than `steps` where branches share them
    total = rounds * a_round + evaluations * config.evaluation.drawn * sample * steps / calls
    numbers = {
        "images_per_second": config.rollout.batch_size / a_round,
        "sampled_per_second": 1 / sample,
        "learned_per_second": 1 / update,
        "seconds_a_round": a_round,
        "seconds_in_all": total,
    }
    return Finding(
        "speed",
        f"{numbers['images_per_second']:.2g} images/s (sampling {1 / sample:.2g}, learning {1 / update:.2g}); "
        f"{rounds} rounds and {evaluations} evaluations: about {duration(total)}",
        numbers=numbers,
    )


def duration(seconds: float) -> str:
    """Return a length of time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
