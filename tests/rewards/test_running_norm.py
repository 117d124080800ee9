"""The running mean and standard deviation of a reward against moments written out."""

import math

import pytest
import torch

from rlcm.rewards.composition import RunningNorm


class TestRunningNorm:
    def test_matches_the_moments_of_all_values_while_nothing_has_aged(self):
        norm = RunningNorm()
        norm.half_life = math.inf
        values = torch.randn(90, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 100
        for batch in values.split([7, 50, 1, 32]):
            norm.update(batch)
        assert norm.mean == pytest.approx(values.mean().item(), abs=1e-12)
        assert norm.variance == pytest.approx(values.var(unbiased=False).item(), rel=1e-12)

    def test_matches_weighted_moments(self):
        # Weight of a batch = 2^(-samples after it / half_life): weighted mean and variance written out.
        norm = RunningNorm()
        norm.half_life = 10.0
        batches = [torch.tensor([0.0, 4.0], dtype=torch.float64), torch.tensor([10.0, 11.0, 15.0], dtype=torch.float64)]
        for batch in batches:
            norm.update(batch)
        weights = torch.tensor([0.5 ** (3 / 10)] * 2 + [1.0] * 3, dtype=torch.float64)
        values = torch.cat(batches)
        mean = (weights * values).sum() / weights.sum()
        variance = (weights * (values - mean) ** 2).sum() / weights.sum()
        assert norm.mean == pytest.approx(mean.item(), rel=1e-12)
        assert norm.variance == pytest.approx(variance.item(), rel=1e-12)

    def test_forgets(self):
        norm = RunningNorm()
        norm.update(torch.full((1000,), -180.0) + torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 30)
        for seed in range(40):
            norm.update(torch.randn(1000, generator=torch.Generator().manual_seed(seed)) - 10)
        assert norm.mean == pytest.approx(-10, abs=0.1)
        assert norm.variance == pytest.approx(1, abs=0.1)

    def test_equal_values_give_zero(self):
        norm = RunningNorm()
        norm.update(torch.full((3,), 0.1))
        assert norm(torch.full((3,), 0.1)).abs().max() < 1e-6

    def test_a_first_difference_after_equal_values_is_not_blown_up(self):
        norm = RunningNorm()
        norm.update(torch.full((7,), 1 / 3))
        assert norm(torch.tensor([1 / 3 + 1])).item() == pytest.approx(1)
