"""Baselines by hand, invariances of normalised advantages, and refusals."""

import math

import pytest
import torch
from torch import Tensor

from rlcm.learning import advantages

REWARDS = torch.tensor([1.0, 3.0, 5.0, 2.0, 2.0, 9.0, -1.0])
GROUPS = torch.tensor([4, 4, 4, 0, 0, 7, 4])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_group_by_hand() -> None:
    # Group 4: 1, 3, 5, -1: mean 2, population std sqrt 5. Group 0: equal. Group 7: one image.
    expected = torch.tensor([-1.0, 1.0, 3.0, 0.0, 0.0, 0.0, -3.0])
    torch.testing.assert_close(advantages.group(REWARDS, GROUPS, normalise_std=False), expected)
    torch.testing.assert_close(advantages.group(REWARDS, GROUPS), expected / math.sqrt(5), atol=1e-5, rtol=1e-5)


def test_leave_one_out_by_hand() -> None:
    # Group 4, image 0: 1 - (3 + 5 - 1) / 3 = -4/3: n/(n-1) times the deviation from the mean.
    expected = torch.tensor([-1.0, 1.0, 3.0, 0.0, 0.0, 0.0, -3.0]) * 4 / 3
    found = advantages.leave_one_out(REWARDS, GROUPS)
    torch.testing.assert_close(found, expected)
    scaled = advantages.leave_one_out(REWARDS, GROUPS, normalise_std=True)
    torch.testing.assert_close(scaled, found / found.square().mean().sqrt(), atol=1e-5, rtol=1e-5)


def test_batch_by_hand() -> None:
    # Mean 3, squared deviations 4 0 4 1 1 36 16 = 62.
    torch.testing.assert_close(advantages.batch(REWARDS, normalise_std=False), REWARDS - 3)
    torch.testing.assert_close(advantages.batch(REWARDS), (REWARDS - 3) / math.sqrt(62 / 7), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shift", "scale"), [(100.0, 1.0), (0.0, 50.0), (-7.0, 0.25)])
def test_shifted_and_scaled_rewards_leave_normalised_advantages_unchanged(shift: float, scale: float) -> None:
    def running(rewards: Tensor) -> Tensor:
        statistics = advantages.PromptStatistics(4, 2)
        return statistics.advantages([f"prompt {group}" for group in GROUPS.tolist()], rewards)

    estimators = [
        running,
        advantages.batch,
        lambda rewards: advantages.group(rewards, GROUPS),
        lambda rewards: advantages.leave_one_out(rewards, GROUPS, normalise_std=True),
    ]
    for estimate in estimators:
        torch.testing.assert_close(estimate(REWARDS * scale + shift), estimate(REWARDS), atol=1e-4, rtol=1e-4)


def test_groups_do_not_depend_on_order_or_names() -> None:
    order = torch.randperm(7, generator=generator())
    renamed = (GROUPS * 1000 - 5)[order]
    for estimate in (advantages.group, advantages.leave_one_out):
        torch.testing.assert_close(estimate(REWARDS[order], renamed), estimate(REWARDS, GROUPS)[order])


def test_equal_rewards_give_exactly_zero() -> None:
    # The mean of seven times 0.1 is not 0.1 in floating point, and 1e-17 / 1e-6 would not be 0.
    rewards, one = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.long)
    statistics = advantages.PromptStatistics(8, 1)
    for found in (
        advantages.batch(rewards),
        advantages.group(rewards, one),
        advantages.leave_one_out(rewards, one),
        statistics.advantages(["fox"] * 7, rewards),
    ):
        assert torch.equal(found, torch.zeros(7))


def test_zero_variance_groups() -> None:
    assert advantages.zero_variance_groups(REWARDS, GROUPS) == 2
    assert advantages.zero_variance_groups(REWARDS, torch.zeros(7, dtype=torch.long)) == 0


def test_clip_advantages() -> None:
    assert advantages.clip_advantages(torch.tensor([[-3.0, 0.5], [1.0, 20.0]]), 2).tolist() == [[-2.0, 0.5], [1.0, 2.0]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.batch(torch.zeros(3, 2)),
        lambda: advantages.batch(torch.tensor([1.0, math.inf])),
        lambda: advantages.group(torch.zeros(3), torch.zeros(2, dtype=torch.long)),
        lambda: advantages.leave_one_out(torch.zeros(3), torch.zeros(3, 1, dtype=torch.long)),
        lambda: advantages.zero_variance_groups(torch.tensor([math.nan]), torch.tensor([0])),
        lambda: advantages.clip_advantages(torch.zeros(3), 0.0),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must"):
        call()
