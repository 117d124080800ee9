"""The running statistics of prompts by hand, resumed, and refusals."""

import json
import math

import pytest
import torch

from rlcm.learning import advantages


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_prompt_statistics_by_hand() -> None:
    statistics = advantages.PromptStatistics(buffer_size=3, min_count=2, normalise_std=False)
    # Round 1: fox has two rewards (mean 2); owl has one and takes the batch's mean 4.
    first = statistics.advantages(["fox", "owl", "fox"], torch.tensor([1.0, 8.0, 3.0]))
    assert first.tolist() == [-1.0, 4.0, 1.0]
    # Round 2: fox remembers 3, 5, 7 (1 has left): mean 5; owl 8, 2: mean 5.
    second = statistics.advantages(["fox", "fox", "owl"], torch.tensor([5.0, 7.0, 2.0]))
    assert second.tolist() == [0.0, 2.0, -3.0]
    assert statistics.state_dict() == {"buffers": {"fox": [3.0, 5.0, 7.0], "owl": [8.0, 2.0]}}
    assert statistics.engaged_fraction(["fox", "owl", "cat", "cat"]) == 0.5


def test_prompt_statistics_divide_by_the_population_std() -> None:
    statistics = advantages.PromptStatistics(buffer_size=8, min_count=2)
    # fox 1, 3: std 1. owl alone: batch 1, 8, 3: mean 4, std sqrt(26/3).
    found = statistics.advantages(["fox", "owl", "fox"], torch.tensor([1.0, 8.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 4 / math.sqrt(26 / 3), 1.0]), atol=1e-5, rtol=1e-5)


def test_prompt_statistics_resume_bit_for_bit() -> None:
    rng = generator()
    rounds = [(["fox", "owl", "fox", "elk"], torch.rand(4, generator=rng)) for _ in range(4)]
    whole, begun = advantages.PromptStatistics(5, 3), advantages.PromptStatistics(5, 3)
    uninterrupted = [whole.advantages(*round_) for round_ in rounds]
    for round_ in rounds[:2]:
        begun.advantages(*round_)
    resumed = advantages.PromptStatistics(5, 3)
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    for round_, expected in zip(rounds[2:], uninterrupted[2:], strict=True):
        assert torch.equal(resumed.advantages(*round_), expected)
    assert resumed.state_dict() == whole.state_dict()


def test_refused_rewards_leave_the_buffers_alone() -> None:
    statistics = advantages.PromptStatistics(4, 1)
    statistics.advantages(["fox"], torch.tensor([1.0]))
    for prompts, rewards in ((["fox", "owl"], [1.0, math.nan]), (["fox"], [1.0, 2.0])):
        with pytest.raises(ValueError, match="rewards"):
            statistics.advantages(prompts, torch.tensor(rewards))
    assert statistics.state_dict() == {"buffers": {"fox": [1.0]}}


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.PromptStatistics(0, 1),
        lambda: advantages.PromptStatistics(4, 5),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must"):
        call()
