"""A window of noisy steps: which rows are actions, and what the others do in place of drawing noise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_matrix import SAMPLERS, SD15, every_short_sampler, sampler, scheduler_of

from rlcm.errors import SamplerError
from rlcm.policy.samplers import build_table
from rlcm.policy.transitions import require_noise, transition
from rlcm.policy.window import with_window
from rlcm.types import TransitionTable


@every_short_sampler
def test_rows_in_the_window_are_as_they_were_and_the_others_draw_none(name):
    table, _ = sampler(name)
    noisy = table.noisy_steps().tolist()
    if not noisy:
        return
    for window in ([noisy[0]], [noisy[-1]], noisy):
        found = with_window(table, window)
        assert found.noisy_steps().tolist() == window
        untouched = sorted({*window, *(row for row in range(len(table)) if row not in noisy)})
        for column in ("b0", "bx", "bm", "std", "ax", "am", "c_in", "timesteps"):
            assert torch.equal(getattr(found, column)[untouched], getattr(table, column)[untouched])
        assert found.quiet is table.quiet


@every_short_sampler
def test_a_row_without_its_noise_leads_to_the_noise_level_of_the_row_with_it(name):
    # Of a network that knows x0: what a step leaves of x0, and of noise, old and new, is the same with the window and without.
    if name.startswith("cm-"):
        pytest.skip("its answer has the noise of sigma_min left: the test below")
    if name == "ddpm-10-large":
        pytest.skip("fixed_large draws more noise than the next call expects")
    table, scheduler = sampler(name)
    quiet = table.with_noise_in([])
    assert not quiet.noisy_steps().numel()
    columns = {c: getattr(table, c).double() for c in ("ax", "am", "b0", "bx", "bm", "std")}
    if hasattr(scheduler, "alphas_cumprod") and not name.startswith("euler-a"):
        abar = scheduler.alphas_cumprod.double()[scheduler.timesteps.cpu()]
        levels = list(zip(abar.sqrt().tolist(), (1 - abar).sqrt().tolist(), strict=True))
    elif name.startswith("scm"):
        sd = scheduler.config.sigma_data
        levels = [(math.cos(t), math.sin(t) * sd) for t in table.timesteps.tolist()]
    else:
        levels = [(1.0 if name.startswith("euler-a") else 1 - s, s) for s in scheduler.sigmas.tolist()]

    def step(row, b0, bx, bm):
        """What the step makes of x = signal x0 + noise z: (of x0, of z)."""
        signal, noise = levels[row]
        ax, am = columns["ax"][row], columns["am"][row]
        # The output for which the prediction is x0: m = (x0 - ax x) / am.
        return b0 + bx * signal + bm * (1 - ax * signal) / am, bx * noise - bm * ax * noise / am

    for row in range(len(table)):
        with_it = step(row, *(columns[c][row] for c in ("b0", "bx", "bm")))
        without = step(row, *(getattr(quiet, c)[row].double() for c in ("b0", "bx", "bm")))
        level = float((with_it[1] ** 2 + columns["std"][row] ** 2) ** 0.5)
        scale = max(1.0, levels[row][1])
        assert float(without[0]) == pytest.approx(float(with_it[0]), abs=2e-4 * scale), row
        assert abs(float(without[1])) == pytest.approx(level, abs=2e-4 * scale), row


def test_a_consistency_model_without_noise_follows_the_straight_line_to_one_point():
    # One datum 0: x = sigma z, and the answer of a consistency model is sigma_min z.
    scheduler = scheduler_of("CMStochasticIterative", {"clip_denoised": False})
    table = build_table(scheduler, 6).with_noise_in([])
    sigma, e = scheduler.sigmas.double(), scheduler.config.sigma_min
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = float(sigma[0]) * z
    for i in range(6):
        m = (e * z - table.ax[i] * x) / table.am[i]
        x = transition(table, x, m, torch.full((2,), i))[1]
        torch.testing.assert_close(x, max(float(sigma[i + 1]), e) * z, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "config"), [("DDIM", SD15), ("DDIM", {}), ("TCD", {})])
def test_a_row_without_noise_is_the_schedulers_own_step_with_eta_0(kind, config):
    scheduler = scheduler_of(kind, config)
    table = build_table(scheduler, 4).with_noise_in([])
    generator = torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        x, m = torch.randn(2, 2, 3, 4, 5, generator=generator)
        theirs = scheduler.step(m, t, x, eta=0.0, return_dict=False)[0]
        torch.testing.assert_close(transition(table, x, m, torch.tensor([i, i]))[1], theirs, rtol=1e-5, atol=1e-5)


def test_a_table_that_says_nothing_of_such_rows_keeps_its_means():
    zeros, ones = torch.zeros(3), torch.ones(3)
    table = TransitionTable("Own", zeros, ones, ones, ones, ones, zeros, zeros, std=torch.tensor([0.5, 0.4, 0.0]))
    found = with_window(table, [1])
    assert found.std.tolist() == pytest.approx([0, 0.4, 0])
    assert torch.equal(found.b0, table.b0)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from([n for n, (*_, steps, _) in SAMPLERS.items() if 2 <= steps <= 10]))
def test_any_window(data, name):
    table, _ = sampler(name)
    noisy = table.noisy_steps().tolist()
    window = data.draw(st.lists(st.integers(0, len(table) - 1), unique=True, min_size=1))
    found = with_window(table, window)
    assert found.noisy_steps().tolist() == [row for row in noisy if row in window]
    number = data.draw(st.integers(1, len(noisy)))
    assert with_window(table, f"first:{number}").noisy_steps().tolist() == noisy[:number]
    assert with_window(table, f"last:{number}").noisy_steps().tolist() == noisy[-number:]
    assert with_window(table, "all") is table


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (
            [4],
            r"noisy_steps=\[4\]: there is no step 4; the 4 steps of LCM are 0 \.\. 3, and those that draw noise are \[0, 1, 2\]",
        ),
        ([0, -1], "there is no step -1"),
        ("first:4", "3 of the 4 steps of LCM draw noise; use first:3 or less"),
        ("last:9", "use last:3 or less"),
        ("middle:1", "no window; use all, first:1"),
        ("first:0", "no window"),
        ("first:x", "no window"),
    ],
)
def test_windows_that_are_not_there(window, message):
    with pytest.raises(SamplerError, match=message):
        with_window(build_table(scheduler_of("LCM"), 4), window)


def test_a_policy_needs_an_action():
    table = build_table(scheduler_of("LCM"), 4)
    require_noise(with_window(table, [0, 3]))
    with pytest.raises(SamplerError, match=r"noisy_steps=\[3\]: none of these steps draws noise.*noisy_steps=first:1"):
        require_noise(with_window(table, [3]), window=[3])
    require_noise(with_window(table, [3]).with_final_std(0.1), window=[3])
    flow = build_table(scheduler_of("FlowMatchEulerDiscrete"), 2, eta=0, sigmas=[1, 0.5])
    with pytest.raises(SamplerError, match=r"eta=0 .*Use 0 < sampler\.eta <= 1"):
        require_noise(flow, eta=0)
    with pytest.raises(SamplerError, match=r"first:1: 0 of the 1 steps of LCM draw noise; leave it out"):
        with_window(build_table(scheduler_of("LCM"), 1), "first:1")
