"""Losses against hand-worked cases, closed forms and each other."""

import math

import pytest
import torch
from torch import Tensor

from rlcm.learning import losses


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), parameter)[0]


def test_ppo_gradient_equals_reinforce_at_ratio_one() -> None:
    # d(-r A) = -r A d(log r), and r = 1.
    log_prob = torch.randn(5, 3, generator=generator()).requires_grad_()
    advantages = torch.randn(5, 3, generator=generator(1))
    ppo = losses.ppo_clip(log_prob - log_prob.detach(), advantages, clip_range=1e-4)
    assert ppo.shape == (5, 3)
    torch.testing.assert_close(gradient(ppo, log_prob), gradient(losses.reinforce(log_prob, advantages), log_prob))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.05, 2.0, -2.10, -2.10),  # inside: -r A, slope -r A
        (1.50, 2.0, -2.20, 0.0),  # above with A > 0: clipped at 1.1
        (0.50, 2.0, -1.00, -1.00),  # below with A > 0: the pessimistic side is unclipped
        (0.50, -2.0, 1.80, 0.0),  # below with A < 0: clipped at 0.9
        (1.50, -2.0, 3.00, 3.00),  # above with A < 0: unclipped
    ],
)
def test_ppo_clips_only_the_optimistic_side(ratio: float, advantage: float, loss: float, slope: float) -> None:
    log_ratio = torch.full((2, 3), math.log(ratio), requires_grad=True)
    result = losses.ppo_clip(log_ratio, torch.full((2, 3), advantage), clip_range=0.1)
    torch.testing.assert_close(result, torch.full((2, 3), loss))
    torch.testing.assert_close(gradient(result, log_ratio), torch.full((2, 3), slope))


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    log_ratio = 0.1 * torch.randn(7, 2, generator=generator())
    advantages = torch.randn(7, 2, generator=generator(1))
    whole = losses.ppo_clip(log_ratio, advantages, clip_range=0.05)
    parts = [losses.ppo_clip(log_ratio[rows], advantages[rows], clip_range=0.05) for rows in (slice(0, 3), slice(3, 7))]
    assert torch.equal(torch.cat(parts), whole)


def test_advantages_never_carry_gradient() -> None:
    log_ratio = torch.zeros(2, 3, requires_grad=True)
    advantages = torch.ones(2, 3, requires_grad=True)
    for loss in (losses.ppo_clip(log_ratio, advantages, clip_range=0.1), losses.reinforce(log_ratio, advantages)):
        assert torch.autograd.grad(loss.sum(), advantages, allow_unused=True)[0] is None


def test_rebel_two_samples_by_hand() -> None:
    # ((0.3 - -0.1) / 0.5 - (2 - 1.5))^2 = (0.8 - 0.5)^2 = 0.09; slope in a: 2 * 0.3 / 0.5 = 1.2.
    a = torch.tensor([0.3], requires_grad=True)
    b = torch.tensor([-0.1], requires_grad=True)
    loss = losses.rebel(a, b, torch.tensor([2.0]), torch.tensor([1.5]), eta=0.5)
    torch.testing.assert_close(loss, torch.tensor([0.09]))
    slopes = torch.autograd.grad(loss.sum(), (a, b))
    torch.testing.assert_close(torch.cat(slopes), torch.tensor([1.2, -1.2]))


def test_rebel_of_four_is_the_mean_of_its_two_pairs() -> None:
    prompt_index = torch.tensor([7, 2, 2, 7])
    log_ratio, rewards = torch.randn(2, 4, generator=generator())
    a, b = losses.pair_by_prompt(prompt_index, generator()).T
    whole = losses.rebel(log_ratio[a], log_ratio[b], rewards[a], rewards[b], eta=2.0)
    by_hand = [((log_ratio[i] - log_ratio[j]) / 2 - (rewards[i] - rewards[j])) ** 2 for i, j in ((0, 3), (1, 2))]
    torch.testing.assert_close(whole.mean(), torch.stack(by_hand).mean())


def test_rebel_is_zero_at_the_tilted_policy() -> None:
    # pi = pi_old exp(eta r) / Z  =>  log-ratio = eta r - log Z, and log Z cancels.
    reward_a, reward_b = torch.randn(2, 6, generator=generator())
    loss = losses.rebel(0.7 * reward_a - 1.3, 0.7 * reward_b - 1.3, reward_a, reward_b, eta=0.7)
    assert loss.max() < 1e-12


@pytest.mark.parametrize("prompts", [[0], [0, 1, 2], [3, 3, 3], [5, 1, 5, 1, 1, 9, 5, 5, 1, 1], [4] * 8])
def test_pairs_share_a_prompt_and_use_a_row_once(prompts: list[int]) -> None:
    prompt_index = torch.tensor(prompts)
    for seed in range(20):
        pairs = losses.pair_by_prompt(prompt_index, generator(seed))
        assert len(pairs) == sum(prompts.count(prompt) // 2 for prompt in set(prompts))
        assert len(set(pairs.flatten().tolist())) == pairs.numel()
        assert torch.equal(prompt_index[pairs[:, 0]], prompt_index[pairs[:, 1]])


def test_every_pair_of_a_prompt_is_equally_likely() -> None:
    # Three rows, one pair of three possible: 1/3 each; 600 draws, standard error 0.019.
    rng = generator()
    drawn = [frozenset(losses.pair_by_prompt(torch.tensor([8, 8, 8]), rng)[0].tolist()) for _ in range(600)]
    assert all(abs(drawn.count(frozenset(pair)) / 600 - 1 / 3) < 0.08 for pair in ((0, 1), (0, 2), (1, 2)))


def test_kl_penalty_gradient() -> None:
    # KL of equal-std Gaussians = |m - m_ref|^2 / (2 s^2); gradient c (m - m_ref) / s^2.
    mean = torch.randn(4, 3, generator=generator()).requires_grad_()
    reference = torch.randn(4, 3, generator=generator(1))
    kl = (mean - reference).square().sum(1) / (2 * 0.6**2)
    loss = losses.kl_penalty(kl, coefficient=0.25)
    assert loss.shape == (4,)
    torch.testing.assert_close(gradient(loss, mean), 0.25 * (mean - reference).detach() / 0.36)


@pytest.mark.parametrize(("kl", "expected"), [(0.0, 0.9), (0.05, 0.95), (0.1, 1.0), (0.15, 1.05), (0.2, 1.1), (9.0, 1.1)])
def test_adaptive_coefficient(kl: float, expected: float) -> None:
    assert losses.adaptive_coefficient(1.0, kl, 0.1) == pytest.approx(expected)


def test_adaptive_coefficient_stays_within_its_bounds() -> None:
    assert losses.adaptive_coefficient(3.0, 1.0, 0.1, maximum=3.1) == 3.1
    assert losses.adaptive_coefficient(3.0, 0.0, 0.1, minimum=2.9) == 2.9


def test_pseudo_huber_by_hand_and_its_limits() -> None:
    # Row differences (3, 4): mean square 12.5; c^2 = 2 gives sqrt(14.5) - sqrt 2.
    prediction = torch.tensor([[[3.0, 4.0]], [[1.0, 1.0]], [[1e-6, 1e-6]]], dtype=torch.float64)
    target = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]], dtype=torch.float64)
    c = math.sqrt(2)
    distance = losses.consistency_huber(prediction, target, c=c)
    assert distance[:2].tolist() == pytest.approx([math.sqrt(14.5) - c, 0.0])
    l2 = losses.consistency_l2(prediction, target)
    assert l2.tolist() == pytest.approx([12.5, 0.0, 1e-12])
    small = losses.consistency_huber(prediction[2:], target[2:], c=1e-3)
    assert small.item() == pytest.approx(1e-12 / 2e-3, rel=1e-4)


@pytest.mark.parametrize("distance", [losses.consistency_huber, losses.consistency_l2])
def test_consistency_pulls_the_prediction_only_and_ignores_resolution(distance) -> None:  # type: ignore[no-untyped-def]
    prediction = torch.randn(3, 2, 4, 4, generator=generator()).requires_grad_()
    target = torch.randn(3, 2, 4, 4, generator=generator(1)).requires_grad_()
    loss = distance(prediction, target)
    assert loss.shape == (3,)
    pull, none = torch.autograd.grad(loss.sum(), (prediction, target), allow_unused=True)
    assert none is None
    assert ((pull * (prediction - target)).flatten(1).sum(1) > 0).all()
    tiled = distance(prediction.tile(1, 1, 2, 2), target.tile(1, 1, 2, 2))
    torch.testing.assert_close(tiled, loss)
    at_target = distance(prediction, prediction)
    assert torch.equal(gradient(at_target, prediction), torch.zeros_like(prediction))


def test_ppo_statistics_by_hand() -> None:
    ratio = torch.tensor([[1.0, 1.2, 0.7], [1.05, 0.95, 1.0]], dtype=torch.float64)
    found = losses.ppo_statistics(ratio.log(), 0.1)
    assert found == pytest.approx(
        {
            "clip_fraction": 2 / 6,
            "ratio_mean": 5.9 / 6,
            "ratio_max_deviation": 0.3,
            "approx_kl": (5.9 - 6 - (math.log(1.2) + math.log(0.7) + math.log(1.05) + math.log(0.95))) / 6,
        }
    )


def test_approx_kl_is_the_kl_of_two_gaussians_in_expectation() -> None:
    # Sum log-ratio of a unit Gaussian shifted by u in each of D entries: z u - u^2/2 summed; KL = D u^2 / 2 = 0.16.
    u, size, draws = 0.2, 8, 200_000
    z = torch.randn(draws, size, generator=generator())
    log_ratio = (z * u - u * u / 2).sum(1, keepdim=True)
    kl = losses.ppo_statistics(log_ratio, 0.1)["approx_kl"]
    excess = log_ratio.exp() - 1 - log_ratio
    assert abs(kl - 0.16) < 4 * excess.std().item() / math.sqrt(draws)


def test_statistics_of_tiny_ratios_are_exact() -> None:
    # y = 1e-5: (e^y - 1) - y = y^2/2 + y^3/6.
    y = torch.full((3, 2), 1e-5)
    exact = y[0, 0].double().item()
    assert losses.ppo_statistics(y, 1e-4)["approx_kl"] == pytest.approx(exact**2 / 2 + exact**3 / 6, rel=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.ppo_clip(torch.zeros(3, 2), torch.zeros(3), clip_range=0.1),
        lambda: losses.ppo_clip(torch.zeros(3, 2), torch.zeros(3, 2), clip_range=0.0),
        lambda: losses.reinforce(torch.zeros(3, 2), torch.zeros(2, 3)),
        lambda: losses.rebel(torch.zeros(3), torch.zeros(3), torch.zeros(2), torch.zeros(3), eta=1.0),
        lambda: losses.rebel(torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.zeros(3), eta=0.0),
        lambda: losses.pair_by_prompt(torch.zeros(2, 2, dtype=torch.long)),
        lambda: losses.kl_penalty(torch.zeros(3), coefficient=-1.0),
        lambda: losses.kl_penalty(torch.zeros(3), coefficient=math.nan),
        lambda: losses.adaptive_coefficient(1.0, math.nan, 0.1),
        lambda: losses.adaptive_coefficient(1.0, 0.1, 0.0),
        lambda: losses.adaptive_coefficient(1.0, 0.1, 0.1, minimum=2.0, maximum=1.0),
        lambda: losses.consistency_l2(torch.zeros(3, 2), torch.zeros(3, 1)),
        lambda: losses.consistency_l2(torch.zeros(3), torch.zeros(3)),
        lambda: losses.consistency_huber(torch.zeros(3, 2), torch.zeros(3, 2), c=0.0),
        lambda: losses.ppo_statistics(torch.zeros(0, 2), 0.1),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must"):
        call()


@pytest.mark.parametrize(
    ("kl", "ratio", "advantage", "loss", "slope"),
    [
        (0.1, 1.5, 2.0, -3.0, -3.0),  # inside the region: -r A, however large the ratio
        (0.3, 1.5, 2.0, 0.0, 0.0),  # beyond it, and leading away
        (0.3, 0.5, 2.0, -1.0, -1.0),  # beyond it, but leading back
        (0.3, 0.5, -2.0, 0.0, 0.0),  # beyond it, and leading away
        (0.3, 1.5, -2.0, 3.0, 3.0),  # beyond it, but leading back
    ],
)
def test_divergence_ppo_masks_what_leads_away_beyond_its_limit(
    kl: float, ratio: float, advantage: float, loss: float, slope: float
) -> None:
    log_ratio = torch.full((2, 3), math.log(ratio), requires_grad=True)
    found = losses.divergence_ppo(log_ratio, torch.full((2, 3), advantage), torch.full((2,), kl), limit=0.2)
    torch.testing.assert_close(found, torch.full((2, 3), loss))
    torch.testing.assert_close(gradient(found, log_ratio), torch.full((2, 3), slope))


def test_divergence_ppo_at_ratio_one_is_reinforce() -> None:
    log_prob = torch.randn(5, 3, generator=generator()).requires_grad_()
    advantages = torch.randn(5, 3, generator=generator(1))
    found = losses.divergence_ppo(log_prob - log_prob.detach(), advantages, torch.zeros(5), limit=1e-4)
    torch.testing.assert_close(gradient(found, log_prob), gradient(losses.reinforce(log_prob, advantages), log_prob))


def nft_case() -> tuple[Tensor, Tensor, Tensor]:
    old, target = torch.randn(4, 2, 3, generator=generator()), torch.randn(4, 2, 3, generator=generator(1))
    return old.clone().requires_grad_(), old, target


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_nft_at_the_old_policy_is_matching_weighed_by_the_centred_goodness(beta: float) -> None:
    # dL/df = b (2 g - 1) 2 (f - x0) / (entries mean|f - x0|): both halves have one prediction there, and opposite slopes.
    prediction, old, target = nft_case()
    goodness = torch.tensor([0.0, 0.5, 0.8, 1.0])
    found = losses.nft(prediction, old, target, goodness, beta=beta)
    away = (old - target).flatten(1)
    norm = away.abs().mean(1)
    torch.testing.assert_close(found, away.square().mean(1) / norm)
    wanted = (beta * (2 * goodness - 1) / norm)[:, None] * 2 * away / away.shape[1]
    torch.testing.assert_close(gradient(found, prediction).flatten(1), wanted)


def test_nft_of_a_good_and_a_bad_image_by_hand() -> None:
    # One entry: old 0, prediction 1, image 3, b .5. f+ = .5 is 2.5 away, f- = -.5 is 3.5 away.
    one, zero, three = torch.ones(1, 1), torch.zeros(1, 1), torch.full((1, 1), 3.0)
    assert losses.nft(one, zero, three, torch.ones(1), beta=0.5).item() == pytest.approx(2.5)
    assert losses.nft(one, zero, three, torch.zeros(1), beta=0.5).item() == pytest.approx(3.5)
    assert losses.nft(one, zero, three, torch.full((1,), 0.25), beta=0.5).item() == pytest.approx(0.25 * 2.5 + 0.75 * 3.5)


def test_the_new_losses_refuse_other_shapes() -> None:
    prediction, old, target = nft_case()
    with pytest.raises(ValueError, match=r"goodness must have the shape \[4\]"):
        losses.nft(prediction, old, target, torch.ones(4, 1), beta=1.0)
    with pytest.raises(ValueError, match=r"kl must have the shape \[2\]"):
        losses.divergence_ppo(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), limit=1.0)
    with pytest.raises(ValueError, match="beta must be > 0"):
        losses.nft(prediction, old, target, torch.ones(4), beta=0.0)
