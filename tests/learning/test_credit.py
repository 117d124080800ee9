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


def by_hand(rewards, weights, size):
    """GDPO as its paper writes it, in plain loops."""
    total = torch.zeros(len(rewards[0]), dtype=torch.float64)
    for values, weight in zip(rewards, weights, strict=True):
        for start in range(0, len(values), size):
            part = values[start : start + size].double()
            spread = part.std(correction=0)
            total[start : start + size] += weight * (part - part.mean()) / (spread + 1e-6) if spread > 0 else 0
    return (total - total.mean()) / (total.std(correction=0) + 1e-6)


def test_rewards_one_by_one_are_gdpo():
    made = credit(group_size=4, multi_reward="gdpo")
    hard = (noise(B, 4) > 0.8).float()  # most often 0
    easy = 100 * noise(B, 4, seed=1)
    penalty = noise(B, 4, seed=2)
    weights = {"hard": 1.0, "easy": 0.5, "penalty": -0.25}
    returns = torch.stack([hard, easy, penalty], -1)[:, None]
    found = made.advantages(returns, ["a"] * B, torch.ones(B, 4, dtype=torch.bool), weights)
    wanted = by_hand([hard.flatten(), easy.flatten(), penalty.flatten()], weights.values(), 4)
    torch.testing.assert_close(found.flatten().double(), wanted, rtol=1e-5, atol=1e-6)
    assert found.mean().abs() < 1e-6
    assert found.std(correction=0) == pytest.approx(1, abs=1e-4)


def test_a_hard_binary_reward_does_not_drown_beside_an_easy_one():
    # Of 4 images one is right; the easy reward is a hundred times as large, and says something else.
    hard = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    easy = torch.tensor([[300.0, 100.0, 200.0, 200.0]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    summed = credit(group_size=4).advantages((hard + easy)[:, None], ["a"], valid)
    made = credit(group_size=4, multi_reward="gdpo")
    apart = made.advantages(torch.stack([hard, easy], -1)[:, None], ["a"], valid, {"hard": 1.0, "easy": 1.0})
    assert summed[0, 0, 3] < 0.02  # the right image is hardly told from its neighbour
    # By hand: hard is (-1, -1, -1, 3) / sqrt 3, easy is (1, -1, 0, 0) sqrt 2; their sum has the variance 2.
    s3, s2 = 3**0.5, 2**0.5
    wanted = torch.tensor([-1 / s3 + s2, -1 / s3 - s2, -1 / s3, s3]) / s2
    torch.testing.assert_close(apart[0, 0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["group", "leave_one_out", "batch", "prompt_statistics"])
def test_one_reward_alone_is_the_comparison_over_its_spread(kind):
    rewards, valid = noise(B, 1, K), torch.ones(B, K, dtype=torch.bool)
    prompts = [f"p{i}" for i in range(B)]
    settings = {"advantage": kind, "stat_min_count": 2}
    plain = credit(K, **settings).advantages(rewards, prompts, valid)
    found = credit(K, multi_reward="gdpo", **settings).advantages(rewards[..., None], prompts, valid, {"only": 3.0})
    wanted = (plain - plain.mean()) / plain.std(correction=0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_gdpo_leaves_out_what_was_not_scored_and_keeps_statistics_of_every_reward():
    made = credit(2, multi_reward="gdpo", advantage="prompt_statistics", stat_min_count=2)
    returns = noise(B, A, 1, 2)
    returns[0] = float("nan")
    valid = torch.ones(B, 1, dtype=torch.bool)
    valid[0] = False
    found = made.advantages(returns, ["a fox"] * B, valid, {"one": 1.0, "two": 2.0})
    assert found.shape == (B, A, 1)
    assert found.isfinite().all()
    assert not found[0].any()
    names = set(made.statistics.state_dict()["buffers"])
    assert {"a fox", "a fox (two)", "a fox (action 1)", "a fox (action 1) (two)"} <= names


def test_a_group_is_idle_only_if_it_is_so_in_every_reward():
    flat, varied = torch.ones(2, 1, 2), torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])
    valid = torch.ones(2, 2, dtype=torch.bool)
    assert credit().idle_groups(flat, valid) == 1
    assert credit().idle_groups(torch.stack([flat, varied], -1), valid) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalise_std": False}, "normalise_std=true"),
        ({"kl_form": "reward", "kl_coefficient": 0.1}, "kl_form=loss"),
        ({"loss": "reward_backprop"}, "multi_reward=gdpo has no meaning"),
        ({"multi_reward": "each"}, "'sum' or 'gdpo'"),
    ],
)
def test_gdpo_says_what_it_does_not_go_with(settings, message):
    with pytest.raises(ValueError, match=message):
        AlgorithmSettings(**{"multi_reward": "gdpo", **settings})
