"""Identities of isotropic Gaussians, against torch.distributions and closed forms."""

import math

import pytest
import torch

from rlcm.policy import gaussian

N, K, LATENT = 3, 5, (2, 3, 4)
D = math.prod(LATENT)
SCALES = {"mean": D, "sqrt": math.sqrt(D), "sum": 1}


@pytest.fixture
def case():
    torch.manual_seed(0)
    std = torch.tensor([0.1, 1.0, 3.0])
    old_mean, new_mean = torch.randn(N, *LATENT), torch.randn(N, *LATENT)
    action = old_mean[:, None] + std.view(N, 1, 1, 1, 1) * torch.randn(N, K, *LATENT)
    return action, old_mean, old_mean + 0.1 * new_mean, std


@pytest.mark.parametrize("reduction", SCALES)
def test_log_prob_is_the_density_of_independent_normals(case, reduction):
    action, mean, _, std = case
    expected = torch.distributions.Normal(mean[:, None], std.view(N, 1, 1, 1, 1)).log_prob(action).sum((2, 3, 4))
    actual = gaussian.log_prob(action, mean, std, reduction)
    assert actual.shape == (N, K)
    torch.testing.assert_close(actual, expected / SCALES[reduction], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", SCALES)
def test_log_ratio_is_the_difference_of_log_probs(case, reduction):
    action, old, new, std = (tensor.double() for tensor in case)
    expected = gaussian.log_prob(action, new, std, reduction) - gaussian.log_prob(action, old, std, reduction)
    torch.testing.assert_close(gaussian.log_ratio(action, old, new, std, reduction), expected)


def test_log_ratio_of_equal_means_is_exactly_zero(case):
    action, old, _, std = case
    assert torch.equal(gaussian.log_ratio(action, old, old.clone(), std, "sum"), torch.zeros(N, K))


def test_direct_ratio_keeps_float32_accuracy():
    # A tiny change of the mean at SD1.5's size: the direct form agrees with float64 far below the published clip range, 1e-4.
    torch.manual_seed(0)
    old, new_shift, z = torch.randn(2, 16384), 1e-2 * torch.randn(2, 16384), torch.randn(2, 3, 16384)
    std = torch.tensor([0.58, 0.97])
    action, new = old[:, None] + std.view(2, 1, 1) * z, old + new_shift
    exact = gaussian.log_ratio(action.double(), old.double(), new.double(), std.double(), "mean")
    assert (gaussian.log_ratio(action, old, new, std, "mean") - exact).abs().max() < 1e-7


@pytest.mark.parametrize("reduction", SCALES)
def test_kl_and_entropy_match_torch(case, reduction):
    _, old, new, std = case
    normal = [torch.distributions.Normal(mean, std.view(N, 1, 1, 1).expand(N, *LATENT)) for mean in (old, new)]
    kl = torch.distributions.kl_divergence(*normal).sum((1, 2, 3)) / SCALES[reduction]
    torch.testing.assert_close(gaussian.kl(old, new, std, reduction), kl)
    torch.testing.assert_close(gaussian.kl(new, old, std, reduction), kl)
    entropy = normal[0].entropy().sum((1, 2, 3)) / SCALES[reduction]
    torch.testing.assert_close(gaussian.entropy(std, D, reduction), entropy)


def test_summed_log_ratio_has_mean_minus_half_its_variance():
    # z u - u^2/2 with z ~ N(0, I): mean -d^2/2, variance d^2, d = |u|; and E[ratio] = 1.
    torch.manual_seed(0)
    draws, std = 100_000, torch.tensor([0.7, 2.0])
    old = torch.randn(2, 6)
    new = old + std.view(2, 1) * torch.tensor([0.1, 0.2]).view(2, 1)
    action = old[:, None] + std.view(2, 1, 1) * torch.randn(2, draws, 6)
    log_ratio = gaussian.log_ratio(action, old, new, std, "sum")
    d_squared = 2 * gaussian.kl(old, new, std, "sum")
    error = d_squared.sqrt() / math.sqrt(draws)
    assert ((log_ratio.mean(1) + d_squared / 2).abs() < 4 * error).all()
    assert ((log_ratio.var(1) / d_squared - 1).abs() < 4 * math.sqrt(2 / draws)).all()
    assert ((log_ratio.exp().mean(1) - 1).abs() < 5 * error).all()


def test_gradient_of_the_ratio_at_equal_means_is_the_score(case):
    # d/d mean of log N(x; mean, std) = (x - mean) / std^2.
    action, old, _, std = case
    new = old.clone().requires_grad_()
    gaussian.log_ratio(action, old, new, std, "mean").sum().backward()
    score = ((action - old[:, None]) / std.view(N, 1, 1, 1, 1).square()).sum(1) / D
    torch.testing.assert_close(new.grad, score)
    new.grad = None
    gaussian.kl(new, old, std, "mean").sum().backward()
    assert torch.equal(new.grad, torch.zeros_like(new))


def test_refusals(case):
    action, old, new, std = case
    for bad in (torch.zeros(N), torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, math.nan, 1.0])):
        with pytest.raises(ValueError, match="is not positive"):
            gaussian.log_ratio(action, old, new, bad, "mean")
    with pytest.raises(ValueError, match="'average' is unknown; use one of mean, sqrt, sum"):
        gaussian.log_prob(action, old, std, "average")
    with pytest.raises(ValueError, match=r"must be \[N, K, \*latent\]"):
        gaussian.log_prob(action[:, 0], old, std, "mean")
    with pytest.raises(ValueError, match=r"must be \[N, \*latent\] and \[N\]"):
        gaussian.kl(old, new[:1], std, "mean")
    with pytest.raises(ValueError, match=r"must be \[N, \*latent\] and \[N\]"):
        gaussian.kl(old, new, std[:2], "mean")
    with pytest.raises(ValueError, match="use float32"):
        gaussian.log_ratio(action.bfloat16(), old, new, std, "mean")
    with pytest.raises(ValueError, match="size=0"):
        gaussian.entropy(std, 0, "mean")


@pytest.mark.parametrize("reduction", SCALES)
def test_normalised_log_ratio_is_the_log_ratio_without_its_bias_in_units_of_the_latent(case, reduction):
    action, old, new, std = (tensor.double() for tensor in case)
    ratio, kl = gaussian.log_ratio(action, old, new, std, reduction), gaussian.kl(old, new, std, reduction)
    wanted = std[:, None] * (ratio + kl[:, None])
    torch.testing.assert_close(gaussian.normalised_log_ratio(action, old, new, std, reduction), wanted)


def test_normalised_log_ratio_has_one_spread_at_every_std_where_the_plain_one_is_biased_and_spreads():
    torch.manual_seed(0)
    std, shift = torch.tensor([0.05, 0.5, 1.0]), torch.full((3, *LATENT), 0.1)
    old = torch.zeros(3, *LATENT)
    action = std.view(3, 1, 1, 1, 1) * torch.randn(3, 20_000, *LATENT)
    plain = gaussian.log_ratio(action, old, shift, std, "sum")
    normalised = gaussian.normalised_log_ratio(action, old, shift, std, "sum")
    wanted = 0.1 * math.sqrt(D)  # |new mean - old mean|
    torch.testing.assert_close(normalised.std(1), torch.full((3,), wanted), rtol=0.03, atol=0)
    assert normalised.mean(1).abs().max() < 4 * wanted / math.sqrt(20_000)
    torch.testing.assert_close(plain.mean(1), -gaussian.kl(old, shift, std, "sum"), rtol=0.05, atol=0.02)
    assert plain.std(1)[0] > 10 * plain.std(1)[1] * 0.9
