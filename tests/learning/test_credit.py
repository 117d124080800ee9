"""Credit: what follows every action, and what it is compared with."""

import pytest
import torch

from rlcm.learning import advantages
from rlcm.learning.algorithm import AlgorithmSettings
from rlcm.learning.credit import Credit

B, A, K = 6, 3, 4


def credit(group_size=2, **settings):
    return Credit(AlgorithmSettings(**{"advantage": "group", **settings}), group_size)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_without_dense_rewards_all_actions_share_the_reward():
    rewards = noise(B, K)
    assert torch.equal(credit().returns(rewards, A), rewards[:, None])


def test_reward_to_go_of_shaped_rewards_is_the_final_reward_against_the_prediction():
    potentials, rewards = noise(B, A), noise(B, 1, seed=1)
    found = credit(dense_every=1).returns(rewards, A, potentials)
    torch.testing.assert_close(found[:, :, 0], rewards - potentials)


def test_lambda_zero_is_what_the_next_prediction_gained():
    potentials, rewards = noise(B, A), noise(B, 1, seed=1)
    found = credit(dense_every=1, dense_lambda=0.0).returns(rewards, A, potentials)
    torch.testing.assert_close(found[:, :, 0], torch.cat((potentials, rewards), 1).diff(dim=1))


def test_states_that_are_not_scored_hold_the_last_score():
    made = credit(dense_every=2)
    assert made.scored_states(5) == [0, 2, 4]
    potentials, rewards = noise(B, 3), noise(B, 1, seed=1)
    found = made.returns(rewards, 5, potentials)[:, :, 0]
    torch.testing.assert_close(found, rewards - potentials[:, [0, 0, 1, 1, 2]])
    assert credit().scored_states(5) == []


def test_charges_are_taken_off_from_their_action_on():
    rewards, charges = noise(B, 1), noise(B, A, 1, seed=1)
    found = credit().returns(rewards, A, charges=charges)
    for action in range(A):
        torch.testing.assert_close(found[:, action], rewards - charges[:, action:].sum(1))


def test_charges_of_branches_are_their_own():
    rewards, charges = noise(B, K), noise(B, 1, K, seed=1)
    torch.testing.assert_close(credit().returns(rewards, 1, charges=charges)[:, 0], rewards - charges[:, 0])


@pytest.mark.parametrize("kind", ["group", "leave_one_out", "batch", "prompt_statistics"])
def test_every_step_is_compared_with_itself(kind):
    """Each column of the advantages is that of the estimator on the column alone."""
    returns = noise(B, A, 1)
    prompts = [f"prompt {i // 2}" for i in range(B)]
    settings = {"advantage": kind, "stat_min_count": 2, "stat_buffer_size": 4}
    found = credit(**settings).advantages(returns, prompts, torch.ones(B, 1, dtype=torch.bool))
    for action in range(A):
        alone = credit(**settings).advantages(returns[:, action : action + 1], prompts, torch.ones(B, 1, dtype=torch.bool))
        assert torch.equal(found[:, action], alone[:, 0])
    assert found.shape == (B, A, 1)
    assert found.std() > 0.1


def test_images_without_a_score_get_nothing_and_count_nowhere():
    rewards = noise(B, K)
    valid = torch.ones(B, K, dtype=torch.bool)
    valid[1, 2] = valid[3] = False
    spoilt = rewards.masked_fill(~valid, torch.nan)
    found = credit(K).advantages(spoilt[:, None], ["a"] * B, valid)[:, 0]
    assert not found[~valid].any()
    torch.testing.assert_close(found[0], advantages.group(rewards[0], torch.zeros(K, dtype=torch.long)))
    torch.testing.assert_close(found[1][valid[1]], advantages.group(rewards[1][valid[1]], torch.zeros(3, dtype=torch.long)))


def test_the_share_of_idle_groups():
    returns = torch.tensor([[1.0], [1.0], [2.0], [3.0], [5.0], [5.0]])[:, None]
    assert credit(2).idle_groups(returns, torch.ones(6, 1, dtype=torch.bool)) == pytest.approx(2 / 3)
