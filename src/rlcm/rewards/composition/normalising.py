"""Rewards of different scales brought to one, by running statistics."""

from __future__ import annotations

import math

from torch import Tensor


class RunningNorm:
    """The running mean and standard deviation of one reward, and values normalised by them.

        n(r) = (r - mean) / (std + 1e-8),   or r - mean if all values seen are equal

    Mean and population variance weigh every sample by 2^(-age / half_life), age = samples seen since its batch; the first
    batches are thus weighted alike, and a reward that improves a hundredfold does not drag its early spread along. Batches
    are merged by the exact formula of Chan, Golub and LeVeque 1983, in float64. A batch is normalised by statistics
    that include it, so the first one is already of unit scale.
    """

    half_life = 2048.0

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.variance = 0.0

    def update(self, values: Tensor) -> None:
        """Take in the values [B] of a batch."""
        if not len(values):
            return
        new = values.detach().double().cpu()
        size, mean, variance = len(new), new.mean().item(), new.var(unbiased=False).item()
        old = self.count * 0.5 ** (size / self.half_life)
        count = old + size
        delta = mean - self.mean
        self.variance = (old * self.variance + size * variance) / count + delta * delta * old * size / (count * count)
        self.mean += delta * size / count
        self.count = count

    def __call__(self, values: Tensor) -> Tensor:
        """Return the values, normalised; differentiable in them."""
        std = math.sqrt(self.variance)
        # fp32 values that are closer than this are equal, and what is left is rounding.
        return (values - self.mean) / (std + 1e-8 if std > 1e-7 * abs(self.mean) else 1.0)


def norm_of(values: Tensor) -> RunningNorm:
    """Return the statistics of values [B] alone."""
    norm = RunningNorm()
    norm.update(values)
    return norm
