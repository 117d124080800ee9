"""Intervals over seeds: known points of Student's distribution, symmetry, and coverage of what they promise."""

import math

import pytest
import torch

from rlcm.studies.intervals import mean_over_seeds, ratio_over_seeds, student


def test_students_points():
    # Textbook values; a degree between two rows takes the wider interval.
    assert [student(n) for n in (1, 2, 4, 30)] == [12.706, 4.303, 2.776, 2.042]
    assert student(2.9) == student(2)
    assert student(1000) == student(30) > 1.96
    with pytest.raises(ValueError, match="below 1"):
        student(0.5)


def test_mean_of_three():
    # s = 1, so half = t(2) / sqrt(3).
    mean, half = mean_over_seeds([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert mean_over_seeds([5.0]) == (5.0, None)
    with pytest.raises(ValueError, match="no values"):
        mean_over_seeds([])


def test_a_ratio_and_its_reverse_are_reciprocal():
    ratio, interval = ratio_over_seeds([100.0, 120.0, 90.0], [4.0, 5.0])
    back, reverse = ratio_over_seeds([4.0, 5.0], [100.0, 120.0, 90.0])
    assert ratio == pytest.approx((100 * 120 * 90) ** (1 / 3) / math.sqrt(20))
    assert ratio * back == pytest.approx(1)
    assert interval is not None
    assert reverse is not None
    assert interval[0] * reverse[1] == pytest.approx(1)
    assert interval[0] < ratio < interval[1]


def test_a_ratio_needs_spreads_and_positive_values():
    assert ratio_over_seeds([6.0], [2.0, 2.0]) == (pytest.approx(3.0), None)
    ratio, interval = ratio_over_seeds([6.0, 6.0], [2.0, 2.0])
    assert interval == (pytest.approx(ratio), pytest.approx(ratio))
    with pytest.raises(ValueError, match="above 0"):
        ratio_over_seeds([1.0], [0.0])


def test_the_interval_of_a_ratio_covers_the_truth_about_as_often_as_it_says():
    # Log-normal times of three seeds each with very unlike spreads, true ratio 10.
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(2000):
        slow = torch.exp(math.log(10) + 0.6 * torch.randn(3, generator=generator)).tolist()
        fast = torch.exp(0.1 * torch.randn(3, generator=generator)).tolist()
        _, interval = ratio_over_seeds(slow, fast)
        assert interval is not None
        covered += interval[0] <= 10 <= interval[1]
    assert 0.93 <= covered / 2000 <= 0.99
