"""Samplers on Gaussian data, whose consistency function is known: mean, variance and policy gradient in closed form."""

import math

import pytest
import torch
from sampler_matrix import SD, scheduler_of

from rlcm.policy import gaussian
from rlcm.policy.samplers import build_table
from rlcm.policy.transitions import transition


class GaussianData:
    """Data N(mu, s^2) in every entry: its consistency function, the end of the probability-flow ODE, is linear in x.

        variance exploding:   f(x, sigma) = mu + k (x - mu),       k = sqrt((s^2 + e^2) / (s^2 + sigma^2)), e = sigma_min
        variance preserving:  f(x, t)     = mu + k (x - a mu),     k = s / sqrt(a^2 s^2 + 1 - a^2), a = sqrt(abar)

    The ODE keeps standardised values, since the marginals are Gaussian. `steps` holds, per step, (a, k, a', std): the
    next latent is a' f(x) + std z.
    """

    mu, s = 0.7, 0.4

    def __init__(self, kind):
        if kind == "exploding":
            self.scheduler = scheduler_of(
                "CMStochasticIterative", {"clip_denoised": False, "sigma_min": 0.2, "sigma_max": 10.0}
            )
            self.table = build_table(self.scheduler, 4)
            sigma = [float(value) for value in self.scheduler.sigmas]
            e = 0.2
            k = [math.sqrt((self.s**2 + e**2) / (self.s**2 + value**2)) for value in sigma[:-1]]
            std = [math.sqrt(max(value**2 - e**2, 0)) if i < 3 else 0.0 for i, value in enumerate(sigma[1:])]
            self.steps = [(1.0, k[i], 1.0, std[i]) for i in range(4)]
            self.start, self.data_variance = sigma[0], self.s**2 + e**2
        else:
            self.scheduler = scheduler_of("LCM", SD)
            self.table = build_table(self.scheduler, 4)
            abar = [float(self.scheduler.alphas_cumprod[t]) for t in self.scheduler.timesteps] + [1.0]
            a = [math.sqrt(value) for value in abar]
            k = [self.s / math.sqrt(value * self.s**2 + 1 - value) for value in abar]
            self.steps = [(a[i], k[i], a[i + 1], math.sqrt(1 - abar[i + 1])) for i in range(4)]
            self.start, self.data_variance = 1.0, self.s**2

    def network(self, x, i, shift=0.0):
        """The output for which the denoised latent is f(x) + shift: the row's mean, (b0 ax + bx) x + b0 am m, solved for m."""
        a, k, a_next, _ = self.steps[i]
        mean = a_next * (self.mu + k * (x - a * self.mu) + shift)
        row = self.table
        return (mean - (row.b0[i] * row.ax[i] + row.bx[i]) * x) / (row.b0[i] * row.am[i])

    def law(self):
        """Mean and variance of the sampler's result, by the recursion E f = mu + k (E x - a mu), Var f = k^2 Var x."""
        mean, variance = 0.0, self.start**2
        for a, k, a_next, std in self.steps:
            mean, variance = a_next * (self.mu + k * (mean - a * self.mu)), a_next**2 * k**2 * variance + std**2
        return mean, variance

    def sensitivity(self, last):
        """d E[result] / d shift, when every call's f is shifted; `last` counts the last call, too."""
        g = 0.0
        for i, (_, k, a_next, _) in enumerate(self.steps):
            g = a_next * (k * g + (1.0 if i < len(self.steps) - 1 or last else 0.0))
        return g


@pytest.mark.parametrize("kind", ["exploding", "preserving"])
def test_gaussian_data_comes_out_of_the_sampler(kind):
    toy, images = GaussianData(kind), 50_000
    generator = torch.Generator().manual_seed(5)
    x = toy.start * torch.randn(images, 2, 1, 1, generator=generator)
    for i in range(len(toy.table)):
        _, mean, std = transition(toy.table, x, toy.network(x, i), torch.full((images,), i))
        x = mean + std.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    mean, variance = toy.law()
    count = x.numel()
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / count)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / count)
    # The law itself is the data's, but for the start: N(0, start^2) instead of noised data, forgotten by the later steps.
    assert mean == pytest.approx(toy.mu, rel=2e-3)
    assert variance == pytest.approx(toy.data_variance, rel=2e-3)


@pytest.mark.parametrize("final_std", [None, 0.3])
@pytest.mark.parametrize("kind", ["exploding", "preserving"])
def test_policy_gradient_of_a_linear_reward_is_exact(kind, final_std):
    # r = w . x: E[r] is linear in a shift of f, and its derivative a recursion; the last call counts only if it is an action.
    toy, images = GaussianData(kind), 50_000
    table = toy.table if final_std is None else toy.table.with_final_std(final_std)
    w = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)
    generator = torch.Generator().manual_seed(6)
    shift = torch.zeros(images, requires_grad=True)  # one copy an image, so that the gradient's standard error is known
    x = toy.start * torch.randn(images, 2, 1, 1, generator=generator)
    log_ratio = torch.zeros(images)
    for i in range(len(table)):
        step = torch.full((images,), i)
        _, new_mean, std = transition(table, x, toy.network(x, i, shift.view(-1, 1, 1, 1)), step)
        old_mean = new_mean.detach()
        x = old_mean + std.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
        if i in table.noisy_steps():
            log_ratio = log_ratio + gaussian.log_ratio(x[:, None], old_mean, new_mean, std, "sum")[:, 0]
    reward = (w * x).sum((1, 2, 3))
    ((reward - reward.mean()) * log_ratio).sum().backward()
    exact = float(w.sum()) * toy.sensitivity(last=final_std is not None)
    error = float(shift.grad.std()) / math.sqrt(images)
    assert abs(float(shift.grad.mean()) - exact) < 4 * error
    assert error < 0.1 * exact
