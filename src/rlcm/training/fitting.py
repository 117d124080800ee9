"""Whether what is asked for fits into memory, before it is begun: what certainly does not is refused, with a number that does."""

from __future__ import annotations

from rlcm.errors import ConfigError
from rlcm.pipelines import MemoryEstimate, PipelineDenoiser, estimate
from rlcm.policy.policy import Policy
from rlcm.policy.rollout import RolloutSettings
from rlcm.processes.machine import available_memory
from rlcm.training.config import TrainConfig

GB = 1e9
UNSURE = 2
"""Factor by which an estimate of activations may be too high."""
GRID = 4
"""Copies of its images that a grid of pictures needs while it is made."""


def check_memory(policy: Policy, denoiser: PipelineDenoiser, config: TrainConfig, processes: int = 1) -> None:
    """Refuse a run whose images cannot be held, or whose batches cannot be computed, on this machine.

    A GPU's batches halve themselves where its memory runs out, so that of those nothing is refused here.

    Args:
        policy: of the run.
        denoiser: the policy's.
        processes: that share the images.

    Raises:
        ConfigError: with the setting, its value, what it takes, and a value that fits.
    """
    rollout, evaluation = config.rollout, config.evaluation
    acting = 1 if rollout.branches > 1 else len(policy.noisy_steps)
    latent = 4
    for size in denoiser.latent_shape:
        latent *= size
    kept = acting * latent * (2 + rollout.branches) // rollout.branches  # states, means and actions, an image's share
    group = rollout.branches * rollout.images_per_prompt
    shared = f" on each of {processes} processes" if processes > 1 else ""
    check_images("rollout.batch_size", rollout.batch_size, denoiser, 1 / processes, extra=kept, multiple=group, where=shared)
    check_images("evaluation.images", evaluation.images, denoiser, 1 / processes, where=shared)
    check_images("evaluation.diversity_images", evaluation.diversity_images, denoiser, 1 / processes, where=shared)
    check_images("evaluation.grid", min(evaluation.grid, evaluation.images), denoiser, GRID)
    if denoiser.device.type == "cpu":
        _check_batches(denoiser, config)


def check_images(
    setting: str,
    count: int,
    denoiser: PipelineDenoiser,
    copies: float = 1.0,
    *,
    extra: int = 0,
    multiple: int = 1,
    where: str = "",
) -> None:
    """Refuse more images than main memory can hold at once.

    Args:
        setting: what their number was set by.
        count: how many.
        denoiser: which draws them.
        copies: of each that are held at the same time; with prompts, times these.
        extra: bytes of each besides its pixels.
        multiple: of which a number that fits has to be one.
        where: words for the error, such as the share of one process.

    Raises:
        ConfigError: with a number that fits.
    """
    each = copies * (4 * 3 * denoiser.height * denoiser.width + extra)
    there = available_memory("cpu")
    if count * each <= there:
        return
    fits = int(there / 2 / each) // multiple * multiple
    remedy = f"use {fits} or less" if fits else "make smaller images by model.height and model.width, or fewer of each prompt"
    raise ConfigError(
        f"{setting}={count}: images of {denoiser.width}x{denoiser.height} pixels take {count * each / GB:,.1f} GB of main "
        f"memory{where}, and {there / GB:,.1f} GB are to be had; {remedy}."
    )


def memory_need(denoiser: PipelineDenoiser, config: TrainConfig) -> MemoryEstimate:
    """Return how much memory a run needs on the device of its denoiser."""
    backprop = config.algorithm.loss == "reward_backprop"
    rollout = config.rollout
    if config.algorithm.is_forward:
        states = rollout.batch_size * config.algorithm.noise_levels
    else:
        states = rollout.batch_size // rollout.branches * (1 if backprop or rollout.branches > 1 else actions(denoiser))
    return estimate(
        denoiser,
        sampled_at_once(rollout),
        min(config.run.micro_batch_size, states),
        training=True,
        differentiable=config.algorithm.follows_reward,
        calls=config.algorithm.backprop_calls if backprop else 1,
    )


def actions(denoiser: PipelineDenoiser) -> int:
    """Return how many actions a plain trajectory has: the steps that draw noise; without one, it is learnt from as one."""
    return max(1, len(denoiser.table.noisy_steps()))


def sampled_at_once(settings: RolloutSettings) -> int:
    """Return how many images one process samples in one batch."""
    return min(settings.sample_batch_size, settings.batch_size)


def _check_batches(denoiser: PipelineDenoiser, config: TrainConfig) -> None:
    """Refuse batches whose activations do not fit, even if they were estimated at twice what they are."""
    need, there = memory_need(denoiser, config), available_memory("cpu")
    taken = need.total - need.weights  # these are there already
    if taken <= UNSURE * there:
        return
    learns = need.learning > max(need.sampling, need.decode)
    setting, value = (
        ("run.micro_batch_size", config.run.micro_batch_size)
        if learns
        else ("rollout.sample_batch_size", config.rollout.sample_batch_size)
    )
    at_once = min(value, config.rollout.batch_size * (actions(denoiser) if learns else 1))
    fits = max(1, int(at_once * there / taken / UNSURE))
    smaller = "" if fits > 1 else ", and smaller images by model.height and model.width"
    raise ConfigError(
        f"{setting}={value}: the run needs an estimated {taken / GB:,.1f} GB beside the weights, and {there / GB:,.1f} GB are to be "
        f"had; use {setting}={fits}{smaller}. The results stay the same."
    )
