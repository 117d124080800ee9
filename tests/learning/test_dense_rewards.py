"""Dense rewards: shaping telescopes, reward-to-go and GAE by hand and in their limits, and refusals."""

import pytest
import torch

from rlcm.learning import advantages


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shaping_telescopes() -> None:
    potentials = torch.randn(3, 5, generator=generator())
    shaped = advantages.shaped_rewards(potentials)
    assert torch.equal(shaped[:, 0], potentials[:, 0])
    torch.testing.assert_close(shaped.cumsum(1), potentials)
    # From the action at call t on, what is still to come is the final reward minus the prediction's.
    torch.testing.assert_close(advantages.reward_to_go(shaped[:, 1:]), potentials[:, -1:] - potentials[:, :-1])


def test_reward_to_go_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
    assert advantages.reward_to_go(rewards, 0.5).tolist() == [[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]]
    assert advantages.reward_to_go(rewards, 0.0).tolist() == rewards.tolist()
    assert rewards[0].tolist() == [1.0, 2.0, 4.0]


def test_gae_limits() -> None:
    rewards, values = torch.randn(2, 4, 3, generator=generator())
    following = torch.cat((values[:, 1:], torch.zeros(4, 1)), dim=1)
    torch.testing.assert_close(advantages.gae(rewards, values, 0.9, 0.0), rewards + 0.9 * following - values)
    torch.testing.assert_close(advantages.gae(rewards, values, 0.9, 1.0), advantages.reward_to_go(rewards, 0.9) - values)


def test_gae_between_its_limits() -> None:
    # delta = (1 + .5 * 4 - 2, 3 - 4) = (1, -1); A_0 = 1 + .5 * .5 * -1 = .75.
    found = advantages.gae(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]]), 0.5, 0.5)
    assert found.tolist() == [[0.75, -1.0]]


@pytest.mark.parametrize(
    ("num_calls", "every", "calls"), [(1, 3, [0]), (4, 1, [0, 1, 2, 3]), (5, 2, [0, 2, 4]), (6, 2, [0, 2, 4, 5])]
)
def test_scored_calls_and_held_potentials(num_calls: int, every: int, calls: list[int]) -> None:
    assert advantages.scored_calls(num_calls, every) == calls
    full = torch.randn(3, num_calls, generator=generator())
    held = advantages.hold_potentials(full[:, calls], calls, num_calls)
    expected = [max(call for call in calls if call <= column) for column in range(num_calls)]
    assert torch.equal(held, full[:, expected])


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.scored_calls(0, 1),
        lambda: advantages.hold_potentials(torch.zeros(3, 2), [0, 2], 4),
        lambda: advantages.hold_potentials(torch.zeros(3, 3), [0, 3], 4),
        lambda: advantages.shaped_rewards(torch.zeros(3)),
        lambda: advantages.reward_to_go(torch.zeros(3)),
        lambda: advantages.reward_to_go(torch.zeros(3, 2), 1.5),
        lambda: advantages.gae(torch.zeros(3, 2), torch.zeros(3, 1), 1.0, 1.0),
        lambda: advantages.gae(torch.zeros(3, 2), torch.zeros(3, 2), 1.0, -0.1),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must"):
        call()
