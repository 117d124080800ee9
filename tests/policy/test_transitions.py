"""One step of every sampler's table: its entropy, mixed steps, gradients, the final std, and refused shapes."""

import math

import pytest
import torch
from sampler_matrix import every_sampler, every_short_sampler, sampler

from rlcm.errors import SamplerError
from rlcm.policy import gaussian
from rlcm.policy.transitions import require_noise, transition


@every_short_sampler
def test_expected_log_prob_is_minus_the_entropy(name):
    table, _ = sampler(name)
    steps = table.noisy_steps()
    if not len(steps):
        with pytest.raises(SamplerError, match="draws no noise in any step"):
            require_noise(table)
        return
    require_noise(table)
    generator = torch.Generator().manual_seed(2)
    x, m = torch.randn(2, len(steps), 3, 2, 2, generator=generator)
    _, mean, std = transition(table, x, m, steps)
    draws, size = 1000, 12
    actions = mean[:, None] + std.view(-1, 1, 1, 1, 1) * torch.randn(len(steps), draws, 3, 2, 2, generator=generator)
    log_prob = gaussian.log_prob(actions, mean, std, "sum")
    # The summed log-density has variance D/2; 5 standard errors, and float32's rounding of mean + std z where std is small.
    tolerance = 5 * math.sqrt(size / 2 / draws) + 1e-3
    assert ((log_prob.mean(1) + gaussian.entropy(std, size, "sum")).abs() < tolerance).all()


@every_sampler
def test_mixed_steps_equal_one_at_a_time(name):
    table, _ = sampler(name)
    generator = torch.Generator().manual_seed(3)
    steps = torch.randint(len(table), (7,), generator=generator)
    x, m = torch.randn(2, 7, 3, 2, 2, generator=generator)
    mixed = transition(table, x, m, steps)
    for b in range(7):
        alone = transition(table, x[b : b + 1], m[b : b + 1], steps[b : b + 1])
        for together, single in zip(mixed, alone, strict=True):
            assert torch.equal(together[b : b + 1], single)


@every_sampler
def test_gradient_of_the_mean_is_the_coefficient(name):
    table, _ = sampler(name)
    steps = torch.arange(len(table))
    x, m = torch.randn(2, len(table), 3, 2, 2, generator=torch.Generator().manual_seed(4))
    m.requires_grad_()
    x0, mean, _ = transition(table, x, m, steps)
    mean.sum().backward()
    assert m.grad.isfinite().all()
    passes = torch.ones_like(x) if table.clip is None else (x0.abs() < table.clip).float()
    factors = (table.b0 * table.am).view(-1, 1, 1, 1) * passes + table.bm.view(-1, 1, 1, 1)
    torch.testing.assert_close(m.grad, factors)
    assert (table.b0 * table.am + table.bm).abs().min() > 0  # every step depends on the network


def test_final_std_makes_the_last_step_an_action():
    table, _ = sampler("lcm-1")
    explored = table.with_final_std(0.05)
    require_noise(explored)
    assert explored.noisy_steps().tolist() == [0]
    assert table.std.tolist() == [0]
    assert explored.std.tolist() == pytest.approx([0.05])
    x, m = torch.randn(2, 3, 4, 2, 2)
    step = torch.zeros(3).long()
    assert torch.equal(transition(table, x, m, step)[1], transition(explored, x, m, step)[1])
    four = sampler("tcd-4")[0].with_final_std(0.1)
    assert four.std.tolist()[:3] == sampler("tcd-4")[0].std.tolist()[:3]
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="use a positive number"):
            table.with_final_std(std)


def test_to_keeps_everything():
    table, _ = sampler("cm-40")
    moved = table.to("meta")
    assert (moved.name, moved.clip, len(moved)) == ("CMStochasticIterative", 1.0, 40)
    assert moved.std.device.type == moved.timesteps.device.type == "meta"


def test_require_noise_names_both_remedies():
    with pytest.raises(SamplerError, match=r"num_steps=1.*back-propagate.*with_final_std"):
        require_noise(sampler("lcm-1")[0])


def test_transition_refuses_wrong_shapes_and_half_precision():
    table, _ = sampler("lcm-2")
    x = torch.randn(3, 4, 2, 2)
    with pytest.raises(ValueError, match=r"use \[B, \*latent\]"):
        transition(table, x, x[:, :2], torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"step \(1,\)"):
        transition(table, x, x, torch.zeros(1).long())
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="keep float32"):
            transition(table, x, x.to(dtype), torch.zeros(3).long())
