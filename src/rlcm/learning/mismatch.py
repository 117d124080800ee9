"""How far the policy that learns is from the one that sampled, where the same weights round differently in the two."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rlcm.errors import RLCMError, TrainingError
from rlcm.learning.algorithm import AlgorithmSettings
from rlcm.policy import gaussian
from rlcm.types import Denoiser

WORTH_A_WARNING = 0.1
"""Distance of the two means, in stds of the action and per latent entry, from which users are told. At a tenth the rounding adds
a hundredth to the variance of the gradient."""
TOO_FAR = 0.5
"""Distance from which a run stops: rounding does not go so far where actions have the usual noise, so the two do not compute the
same function."""


class Mismatch:
    """Measures the distance of the two policies, weighs actions for it, and stops where it is too large."""

    def __init__(self, algorithm: AlgorithmSettings) -> None:
        self.scale, self.cap = algorithm.log_prob_reduction, algorithm.importance_cap

    def of(self, actions: Tensor, sampling: Tensor, learning: Tensor, stds: Tensor) -> dict[str, Tensor]:
        """Return the two metrics of a round, on the device.

        mismatch_kl           KL divergence of the policy that sampled from the one that learns, nats per action (a sum over the
                              latent's entries)
        mismatch_ratio_max    largest distance from 1 of the ratio of the two, on the scale of the clip range

        Args:
            actions: [N, K, *latent].
            sampling: [N, *latent] means of the policy that sampled.
            learning: [N, *latent] means of the same weights in the computation that learns.
            stds: [N].
        """
        ratio = gaussian.log_ratio(actions, sampling, learning, stds, self.scale)
        return {
            "mismatch_kl": gaussian.kl(sampling, learning, stds, "sum").mean(),
            "mismatch_ratio_max": ratio.expm1().abs().max(),
        }

    def weights(self, actions: Tensor, sampling: Tensor, learning: Tensor, stds: Tensor) -> Tensor:
        """Return the truncated importance weight of every action, [N, K].

            w = min(c, r),   r = p_learning(a) / p_sampling(a)

        Ionides 2008, "Truncated importance sampling"; for policies that sample and learn in different engines, Yao et al. 2025.
        The ratio is on the scale of the chosen reduction, as the policy's own is.
        """
        return gaussian.log_ratio(actions, sampling, learning, stds, self.scale).exp().clamp(max=self.cap)

    def require_agreement(self, found: Mapping[str, float], size: int, kind: type[RLCMError] = TrainingError) -> None:
        """Stop where the two policies are too far apart to be one.

        Args:
            found: with `mismatch_kl`.
            size: D, the number of latent entries.
            kind: of the error.

        Raises:
            RLCMError: of that kind.
        """
        distance = standard_distance(found.get("mismatch_kl", 0.0), size)
        if not distance <= TOO_FAR:
            raise kind(
                f"the policy that learns is {distance:.2g} standard deviations of an action away from the one that sampled, per latent "
                f"entry (accepted: {TOO_FAR}): that is more than rounding, unless the noise is very small. Switch dropout and "
                "other randomness in the network off; use model.precision=fp32 and model.tf32=false if the precision is too low, or "
                "a larger sampler.final_std or sampler.eta where one is set."
            )


def standard_distance(kl: float, size: int) -> float:
    """Return the root mean square distance of two means in stds per latent entry, of a KL divergence in nats: sqrt(2 KL / D)."""
    return math.sqrt(2 * kl / size)


def remedy(algorithm: AlgorithmSettings) -> str:
    """Return what to do about a mismatch that is worth a warning; REBEL takes no importance weights."""
    weights = "" if algorithm.loss == "rebel" else "set algorithm.importance_cap=2, "
    return f"{weights}use more sampler.steps, or model.precision=fp32"


def computes_alike(denoiser: Denoiser) -> bool:
    """Return whether a network answers a state alike, but for a last bit, in a batch of any shape: in fp32 on a CPU, uncompiled."""
    if denoiser.device.type != "cpu" or getattr(denoiser, "is_compiled", False):
        return False
    floats = (tensor.dtype for tensor in denoiser.module.state_dict().values() if tensor.is_floating_point())
    return all(dtype.itemsize >= torch.float32.itemsize for dtype in floats)
