"""Coefficient-preserving sampling of flow matching: both of its ends, its law on Gaussian data, and its policy gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_matrix import SIGMAS, scheduler_of

from rlcm.policy import gaussian
from rlcm.policy.samplers import build_table, check_replay
from rlcm.policy.transitions import transition

FLOW = "FlowMatchEulerDiscrete"
# name: (config, number of steps, settings of the table)
SHIFTS = {
    "none": ({}, 4, SIGMAS),
    "fixed": ({"shift": 3.0}, 4, SIGMAS),
    "fixed, the scheduler's own levels": ({"shift": 3.0}, 5, {}),
    "dynamic": ({"use_dynamic_shifting": True}, 4, {**SIGMAS, "mu": 1.15}),
    "dynamic, linear": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 4, {**SIGMAS, "mu": 2.3}),
    "terminal": ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, 4, {**SIGMAS, "mu": 0.8}),
    "terminal, fixed": ({"shift": 6.0, "shift_terminal": 0.1}, 3, {}),
    "one step": ({"shift": 3.0}, 1, {}),
}
every_shift = pytest.mark.parametrize("shift", SHIFTS)
each_flag = pytest.mark.parametrize("flag", [False, True])


@every_shift
@each_flag
def test_eta_0_is_the_schedulers_own_deterministic_chain(shift, flag):
    config, steps, options = SHIFTS[shift]
    table = build_table(scheduler_of(FLOW, {**config, "stochastic_sampling": flag}), steps, eta=0, **options)
    assert not table.std.any()
    oracle = scheduler_of(FLOW, config)
    oracle.set_timesteps(steps, sigmas=options.get("sigmas"), mu=options.get("mu"))
    assert torch.equal(table.timesteps, oracle.timesteps)
    x = theirs = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(oracle.timesteps):
        theirs = oracle.step(theirs.sin(), t, theirs, return_dict=False)[0]
        x = transition(table, x, x.sin(), torch.full((3,), i))[1]
        assert (x - theirs).norm() / theirs.norm() < 1e-6


@every_shift
@each_flag
def test_eta_1_is_the_table_that_draws_all_noise_anew(shift, flag):
    config, steps, options = SHIFTS[shift]
    if not options and steps > 3:
        pytest.skip("a default schedule with a step almost without noise")
    scheduler = scheduler_of(FLOW, {**config, "stochastic_sampling": flag})
    default = build_table(scheduler, steps, **options)
    table = build_table(scheduler, steps, eta=1, **options)
    sigma = scheduler.sigmas.double()
    ones, zeros = torch.ones(steps), torch.zeros(steps)
    wanted = {"ax": ones, "am": -sigma[:-1], "b0": 1 - sigma[1:], "bx": zeros, "bm": zeros, "std": sigma[1:]}
    for name, column in wanted.items():
        assert (getattr(table, name) - column).abs().max() < 1e-7, name
        assert torch.equal(getattr(table, name), getattr(default, name))


@each_flag
def test_it_is_eta_that_decides_and_not_the_schedulers_flag(flag):
    one, other = (build_table(scheduler_of(FLOW, {"stochastic_sampling": f}), 4, eta=0.3, **SIGMAS) for f in (flag, not flag))
    for name in ("b0", "bx", "std"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@settings(max_examples=30, deadline=None)
@given(eta=st.floats(0, 1), levels=st.lists(st.floats(0.06, 1), min_size=1, max_size=6, unique=True))
def test_whatever_eta_the_noise_level_of_the_next_call_is_kept(eta, levels):
    levels = sorted(levels, reverse=True)
    scheduler = scheduler_of(FLOW)
    table = build_table(scheduler, len(levels), eta=eta, sigmas=levels)
    assert check_replay(table, scheduler, len(levels), eta=eta, sigmas=levels) < 1e-5
    # Of x = (1 - s) x0 + s z and a network that knows x0: what is left of x0 and of z, old and new.
    s, after = (part.double() for part in (scheduler.sigmas[:-1], scheduler.sigmas[1:]))
    signal = table.b0 + table.bx * (1 - s)
    noise = (table.bx * s).square() + table.std.double().square()
    torch.testing.assert_close(signal, 1 - after, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(noise, after.square(), rtol=1e-5, atol=1e-6)


class FlowChain:
    """Data N(mu, d^2) and the best velocity for it: given x, the expectation of z - x0, which is linear in x."""

    mu, d, start = 0.7, 0.4, 1.0

    def __init__(self, eta, window=None):
        scheduler = scheduler_of(FLOW, {"shift": 3.0})
        self.eta = eta
        self.table = build_table(scheduler, 4, eta=eta, **SIGMAS)
        self.noisy = [0, 1, 2] if window is None else window
        if window is not None:
            self.table = self.table.with_noise_in(window)
        self.sigma = scheduler.sigmas.double().tolist()

    def network(self, x, i, shift=0.0):
        s = self.sigma[i]
        k = (1 - s) * self.d**2 / ((1 - s) ** 2 * self.d**2 + s**2)
        clean = self.mu + k * (x - (1 - s) * self.mu) + shift
        return (x - clean) / s

    def coefficients(self, i):
        """Return A, B, C, std of a step in closed form: x' = A x + B shift + C + std z."""
        s, after = self.sigma[i : i + 2]
        eta = self.eta if i in self.noisy else 0.0
        k = (1 - s) * self.d**2 / ((1 - s) ** 2 * self.d**2 + s**2)
        kept = after * math.cos(eta * math.pi / 2)
        of_clean = (1 - after) - kept * (1 - s) / s
        rest = self.mu * (1 - k * (1 - s))
        return of_clean * k + kept / s, of_clean, of_clean * rest, after * math.sin(eta * math.pi / 2)

    def law(self):
        mean, variance = 0.0, 1.0
        for i in range(4):
            a, _, c, std = self.coefficients(i)
            mean, variance = a * mean + c, a * a * variance + std * std
        return mean, variance

    def sensitivity(self):
        """d E[result] / d shift, where the shift moves the means of noisy steps alone."""
        found = 0.0
        for i in range(4):
            a, b, _, _ = self.coefficients(i)
            found = a * found + (b if i in self.noisy else 0.0)
        return found


@pytest.mark.parametrize(("eta", "window"), [(1.0, None), (0.5, None), (0.2, None), (0.7, [1]), (1.0, [0, 2])])
def test_gaussian_data_comes_out_with_the_mean_and_std_of_the_closed_form(eta, window):
    chain, images = FlowChain(eta, window), 50_000
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(images, 2, 1, 1, generator=generator)
    for i in range(4):
        _, mean, std = transition(chain.table, x, chain.network(x, i), torch.full((images,), i))
        assert bool(std.any()) == (i in chain.noisy)
        x = mean + std.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    mean, variance = chain.law()
    count = x.numel()
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / count)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / count)


@pytest.mark.parametrize(("eta", "window"), [(1.0, None), (0.5, None), (0.7, [1]), (0.4, [0, 2])])
def test_the_policy_gradient_of_a_linear_reward_is_exact(eta, window):
    chain, images = FlowChain(eta, window), 50_000
    w = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)
    generator = torch.Generator().manual_seed(6)
    shift = torch.zeros(images, requires_grad=True)
    x = torch.randn(images, 2, 1, 1, generator=generator)
    log_ratio = torch.zeros(images)
    assert chain.table.noisy_steps().tolist() == chain.noisy
    for i in range(4):
        step = torch.full((images,), i)
        _, new_mean, std = transition(chain.table, x, chain.network(x, i, shift.view(-1, 1, 1, 1)), step)
        old_mean = new_mean.detach()
        x = old_mean + std.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
        if i in chain.noisy:
            log_ratio = log_ratio + gaussian.log_ratio(x[:, None], old_mean, new_mean, std, "sum")[:, 0]
    reward = (w * x).sum((1, 2, 3))
    ((reward - reward.mean()) * log_ratio).sum().backward()
    exact = float(w.sum()) * chain.sensitivity()
    error = float(shift.grad.std()) / math.sqrt(images)
    assert abs(float(shift.grad.mean()) - exact) < 4 * error
    assert error < 0.1 * exact
