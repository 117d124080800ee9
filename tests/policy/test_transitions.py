"""Every sampler's table against its diffusers scheduler, and on Gaussian data, whose consistency function is known.

`SAMPLERS` is the matrix: a new sampler joins every test by one line.
"""

import math
from dataclasses import replace

import diffusers
import pytest
import torch

from rlcm.errors import SamplerError
from rlcm.policy import gaussian
from rlcm.policy.samplers import BUILDERS, NOT_TABLES, build_table, check_replay, replay_error
from rlcm.policy.transitions import require_noise, transition

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = {**SD, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
V = {"prediction_type": "v_prediction"}
SIGMAS = {"sigmas": [1, 0.75, 0.5, 0.25]}

# name: (class without "Scheduler", its config, number of steps, settings of the table)
SAMPLERS = {
    "lcm-1": ("LCM", SD, 1, {}),
    "lcm-2": ("LCM", SD, 2, {}),
    "lcm-8-v": ("LCM", {**SD, **V}, 8, {}),
    "lcm-4-sample-clipped": ("LCM", {**SD, "prediction_type": "sample", "clip_sample": True}, 4, {}),
    "lcm-4-clipped": ("LCM", {**SD, "clip_sample": True}, 4, {}),
    "lcm-5-of-25": ("LCM", SD, 5, {"original_inference_steps": 25}),
    "lcm-3-custom": ("LCM", SD, 3, {"timesteps": [999, 600, 19]}),
    "lcm-4-zero-snr": ("LCM", {**SD, **V, "rescale_betas_zero_snr": True}, 4, {}),
    "tcd-4": ("TCD", SD, 4, {}),
    "tcd-4-v-eta-1": ("TCD", {**SD, **V}, 4, {"eta": 1.0}),
    "tcd-3-sample-custom": ("TCD", {**SD, "prediction_type": "sample"}, 3, {"eta": 0.7, "timesteps": [999, 500, 100]}),
    "tcd-4-any-timestep": ("TCD", SD, 4, {"original_inference_steps": 50}),
    "cm-1": ("CMStochasticIterative", {}, 1, {}),
    "cm-2-custom": ("CMStochasticIterative", {}, 2, {"timesteps": [22, 0]}),
    "cm-8-s-noise": ("CMStochasticIterative", {"s_noise": 1.01, "clip_denoised": False}, 8, {}),
    "cm-40": ("CMStochasticIterative", {}, 40, {}),
    "cm-4-nan-in-diffusers": ("CMStochasticIterative", {"sigma_min": 0.009}, 4, {}),
    "scm-1": ("SCM", {}, 1, {}),
    "scm-2": ("SCM", {}, 2, {}),
    "scm-2-middle": ("SCM", {}, 2, {"intermediate_timesteps": 1.1, "max_timesteps": 1.56454}),
    "scm-4": ("SCM", {"sigma_data": 1.0}, 4, {}),
    "scm-3-custom": ("SCM", {}, 3, {"timesteps": [1.5, 1.0, 0.4, 0]}),
    "flow-lcm-1": ("FlowMatchLCM", {"shift": 3.0}, 1, {}),
    "flow-lcm-4": ("FlowMatchLCM", {"shift": 3.0}, 4, SIGMAS),
    "flow-euler-4": ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, 4, SIGMAS),
    "flow-euler-4-mu": (
        "FlowMatchEulerDiscrete",
        {"stochastic_sampling": True, "use_dynamic_shifting": True},
        4,
        {**SIGMAS, "mu": 1.15},
    ),
    "flow-euler-3-terminal": ("FlowMatchEulerDiscrete", {"stochastic_sampling": True, "shift_terminal": 0.1}, 3, {}),
    "euler-a-1": ("EulerAncestralDiscrete", {**SD, "timestep_spacing": "trailing"}, 1, {}),
    "euler-a-4-turbo": ("EulerAncestralDiscrete", {**SD, "timestep_spacing": "trailing"}, 4, {}),
    "euler-a-4-v": ("EulerAncestralDiscrete", {**SD, **V}, 4, {}),
    "euler-a-2-zero-snr": (
        "EulerAncestralDiscrete",
        {**SD, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        2,
        {},
    ),
    "ddim-50-sd15": ("DDIM", SD15, 50, {}),
    "ddim-10-eta-half": ("DDIM", SD15, 10, {"eta": 0.5}),
    "ddim-10-defaults": ("DDIM", {}, 10, {}),
    "ddim-10-sample": ("DDIM", {**SD15, "prediction_type": "sample"}, 10, {}),
    "ddim-7-zero-snr": (
        "DDIM",
        {**SD, **V, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        7,
        {"eta": 0.999},
    ),
    "ddim-10-linspace": ("DDIM", {**SD, "timestep_spacing": "linspace"}, 10, {}),
    "ddim-1000": ("DDIM", SD, 1000, {}),
    "ddpm-10": ("DDPM", SD, 10, {}),
    "ddpm-10-large": ("DDPM", {**SD, **V, "variance_type": "fixed_large", "steps_offset": 1}, 10, {}),
    "ddpm-10-log": ("DDPM", {**SD, "variance_type": "fixed_small_log", "timestep_spacing": "trailing"}, 10, {}),
    "ddpm-3-custom": ("DDPM", {**SD, "prediction_type": "sample"}, 3, {"timesteps": [900, 400, 7]}),
    "ddpm-1000": ("DDPM", {}, 1000, {}),
}

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
# The statistical tests look at every row: the long schedules repeat what the short ones show.
every_short_sampler = pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.endswith("-1000")])


def scheduler_of(kind, config=None):
    return getattr(diffusers, f"{kind}Scheduler")(**(config or {}))


def sampler(name):
    kind, config, num_steps, settings = SAMPLERS[name]
    scheduler = scheduler_of(kind, config)
    return build_table(scheduler, num_steps, **settings), scheduler


def test_matrix_holds_every_builder():
    assert {f"{kind}Scheduler" for kind, *_ in SAMPLERS.values()} == set(BUILDERS)


@every_sampler
def test_replays_the_scheduler(name):
    _, _, num_steps, settings = SAMPLERS[name]
    table, scheduler = sampler(name)
    assert len(table) == num_steps
    assert table.timesteps.tolist() == scheduler.timesteps[:num_steps].float().tolist()
    for seed in (0, 1000):
        assert check_replay(table, scheduler, num_steps, seed=seed, **settings) <= 1e-5


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.endswith(("-1000", "-nan-in-diffusers"))])
def test_chain_ends_where_the_schedulers_own_chain_ends(name):
    # Two chains on the same noise and the same outputs of a network that sees its own latent, never compared on the way.
    kind, config, num_steps, settings = SAMPLERS[name]
    scheduler = scheduler_of(kind, config)
    table = build_table(scheduler, num_steps, **settings)
    eta = {"eta": settings.get("eta", 0.3 if kind == "TCD" else 1.0)} if kind in ("TCD", "DDIM") else {}
    x = theirs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(
        getattr(scheduler, "init_noise_sigma", 1)
    )
    for i in range(num_steps):
        t = scheduler.timesteps[i]
        scaled = scheduler.scale_model_input(theirs, t) if hasattr(scheduler, "scale_model_input") else theirs
        generator, same = torch.Generator().manual_seed(i), torch.Generator().manual_seed(i)
        theirs = scheduler.step(scaled.sin(), t, theirs, generator=generator, return_dict=False, **eta)[0]
        _, mean, std = transition(table, x, (table.c_in[i] * x).sin(), torch.full((2,), i))
        x = mean + std.view(2, 1, 1, 1) * torch.randn(x.shape, generator=same)
    # At a sigma of 4096, float32 itself leaves 1e-4 of the next latent open.
    assert (x - theirs).norm() / theirs.norm() < (1e-3 if name == "euler-a-2-zero-snr" else 1e-5)


@every_short_sampler
def test_the_schedulers_draws_have_the_tables_mean_and_std(name):
    kind, _, _, settings = SAMPLERS[name]
    eta = {"eta": settings.get("eta", 0.3 if kind == "TCD" else 1.0)} if kind in ("TCD", "DDIM") else {}
    table, _ = sampler(name)
    draws = 4096
    generator = torch.Generator().manual_seed(1)
    for i in table.noisy_steps().tolist():
        _, scheduler = sampler(name)
        if hasattr(scheduler, "set_begin_index"):  # DDIM and DDPM look the timestep up instead
            scheduler.set_begin_index(i)
        scheduler.is_scale_input_called = True
        x, m = torch.randn(1, 2, 2, 2, generator=generator), torch.randn(1, 2, 2, 2, generator=generator)
        many = [tensor.expand(draws, -1, -1, -1) for tensor in (m, x)]
        drawn = scheduler.step(many[0], scheduler.timesteps[i], many[1], generator=generator, return_dict=False, **eta)[0]
        _, mean, std = transition(table, x, m, torch.tensor([i]))
        z = (drawn.mean(0) - mean[0]) / std * math.sqrt(draws)
        assert z.abs().max() < 5
        assert abs(drawn.std(0).square().mean().sqrt() / std - 1) < 5 / math.sqrt(2 * 8 * draws)


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


# Their schedules end above zero noise, and the noise of the last step stays in the picture.
NOISY_LAST_STEP = {"ddim-50-sd15", "ddim-10-eta-half", "ddim-10-sample", "ddim-7-zero-snr", "ddpm-10-large"}


@every_sampler
def test_only_known_last_steps_draw_noise(name):
    table, _ = sampler(name)
    actions = len(table) if name in NOISY_LAST_STEP else len(table) - 1
    actions -= name == "cm-40"  # its last two noise levels are both sigma_min
    assert table.noisy_steps().tolist() == list(range(actions))


def test_known_schedules():
    assert build_table(scheduler_of("LCM"), 2).timesteps.tolist() == [999, 499]
    assert build_table(scheduler_of("LCM"), 4).timesteps.tolist() == [999, 759, 499, 259]
    assert float(sampler("ddim-50-sd15")[0].std[-1]) == pytest.approx(0.0206, abs=5e-5)
    assert sampler("flow-lcm-4")[0].std.tolist() == pytest.approx([0.9, 0.75, 0.5, 0])
    assert sampler("scm-2")[0].timesteps.tolist() == pytest.approx([1.5708, 1.3])


def test_diffusers_own_last_step_can_be_nan_where_the_table_is_not():
    table, scheduler = sampler("cm-4-nan-in-diffusers")
    x = torch.ones(2, 3, 4, 4)
    scheduler.set_begin_index(3)
    scheduler.scale_model_input(x, scheduler.timesteps[3])
    assert scheduler.step(x, scheduler.timesteps[3], x).prev_sample.isnan().all()
    assert transition(table, x, x, torch.tensor([3, 3]))[1].isfinite().all()


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


def test_replay_catches_a_wrong_table():
    _, _, num_steps, settings = SAMPLERS["lcm-2"]
    table, scheduler = sampler("lcm-2")
    wrong = replace(table, std=table.std * 1.001)
    assert 5e-5 < replay_error(wrong, scheduler, num_steps, **settings) < 2e-3
    with pytest.raises(SamplerError, match=r"\d\.\d\de-05 \(relative\), more than the accepted 1e-05"):
        check_replay(wrong, scheduler, num_steps, **settings)
    with pytest.raises(SamplerError, match="nan"):
        check_replay(replace(table, ax=table.ax * math.nan), scheduler, num_steps, **settings)
    with pytest.raises(SamplerError, match="more than the accepted"):
        check_replay(replace(table, c_in=table.c_in * 2), scheduler, num_steps, **settings)
    with pytest.raises(ValueError, match="the table has 2 steps"):
        replay_error(table, scheduler, 4)
    before = scheduler.timesteps.clone()
    replay_error(table, scheduler, num_steps)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.step_index is None


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


REFUSALS = {
    "pndm": ("PNDM", {}, 4, {}, "earlier model outputs.*Use DDIMScheduler"),
    "dpm-sde-order-2": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, 4, {}, "earlier model outputs"),
    "kdpm2-a": ("KDPM2AncestralDiscrete", {}, 4, {}, "two network calls.*EulerAncestralDiscreteScheduler"),
    "heun": ("HeunDiscrete", {}, 4, {}, "two network calls"),
    "flow-heun": ("FlowMatchHeunDiscrete", {}, 4, {}, "Use FlowMatchEulerDiscreteScheduler"),
    "euler": ("EulerDiscrete", {}, 4, {}, "s_churn"),
    "edm-euler": ("EDMEuler", {}, 4, {}, "s_churn"),
    "unknown": ("RePaint", {}, 4, {}, "not a supported sampler.*LCMScheduler, TCDScheduler"),
    "no-steps": ("LCM", {}, 0, {}, "num_steps=0; use 1 or more"),
    "thresholding-lcm": ("LCM", {"thresholding": True}, 4, {}, "thresholding=True"),
    "thresholding-ddim": ("DDIM", {"thresholding": True}, 4, {}, "thresholding=True"),
    "thresholding-ddpm": ("DDPM", {"thresholding": True}, 4, {}, "thresholding=True"),
    "lcm-strength": ("LCM", {}, 4, {"strength": 0.5}, "strength=0.5 is no setting of LCMScheduler, which accepts original_inf"),
    "lcm-eta": ("LCM", {}, 4, {"eta": 0.5}, "eta=0.5 is no setting of LCMScheduler"),
    "euler-a-timesteps": ("EulerAncestralDiscrete", {}, 2, {"timesteps": [9, 1]}, "which accepts none; remove timesteps"),
    "lcm-too-many": ("LCM", {}, 51, {}, "LCMScheduler does not accept num_steps=51"),
    "lcm-custom-count": ("LCM", {}, 4, {"timesteps": [999, 499]}, "num_steps=4 of LCMScheduler gave a schedule of 2 steps"),
    "lcm-zero-snr-eps": ("LCM", {"rescale_betas_zero_snr": True}, 4, {}, "not finite.*v_prediction"),
    "ddim-trailing-61": ("DDIM", {"timestep_spacing": "trailing"}, 61, {}, "gave a schedule of 62 steps"),
    "tcd-deterministic": ("TCD", {}, 4, {"eta": 0.0}, "eta=0.0 of TCDScheduler is deterministic"),
    "ddim-deterministic": ("DDIM", {}, 4, {"eta": 0.0}, "eta=0.0 of DDIMScheduler is deterministic"),
    "ddim-eta-2": ("DDIM", {}, 4, {"eta": 2.0}, "out of range; use 0 < eta <= 1"),
    "ddim-zero-snr": ("DDIM", {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 4, {}, "eta=.999"),
    "flow-deterministic": ("FlowMatchEulerDiscrete", {}, 4, SIGMAS, "stochastic_sampling=True"),
    "flow-default-schedule": ("FlowMatchLCM", {"shift": 3.0}, 4, {}, r"0\.8\d+.*0\.0089.*sigmas=\[1.0, 0.75, 0.5, 0.25\]"),
    "flow-inverted": ("FlowMatchLCM", {"invert_sigmas": True}, 4, SIGMAS, "invert_sigmas=True"),
    "flow-scales": ("FlowMatchLCM", {"scale_factors": [0.5, 0.7, 1.0]}, 4, SIGMAS, "scale_factors"),
    "flow-no-mu": ("FlowMatchLCM", {"use_dynamic_shifting": True}, 4, SIGMAS, "`mu` must be passed"),
    "scm-middle": ("SCM", {}, 4, {"intermediate_timesteps": 1.3}, "Intermediate timesteps"),
    "scm-no-zero": ("SCM", {}, 2, {"timesteps": [1.5, 1.0, 0.1]}, "3 angles that end at 0"),
    "scm-other": ("SCM", {"prediction_type": "epsilon"}, 2, {}, "use 'trigflow'"),
    "euler-a-sample": ("EulerAncestralDiscrete", {"prediction_type": "sample"}, 4, {}, "use one of epsilon, v_prediction"),
    "ddpm-learned": ("DDPM", {"variance_type": "learned_range"}, 4, {}, "depend on the network"),
    "ddpm-large-log": ("DDPM", {"variance_type": "fixed_large_log"}, 4, {}, "gives NaN in diffusers"),
    "lcm-prediction": ("LCM", {"prediction_type": "flow"}, 4, {}, "use one of epsilon, sample, v_prediction"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_with_a_remedy(name):
    kind, config, num_steps, settings, message = REFUSALS[name]
    with pytest.raises(SamplerError, match=message):
        build_table(scheduler_of(kind, config), num_steps, **settings)


def test_refused_classes_exist_and_are_not_supported():
    assert not set(NOT_TABLES) & set(BUILDERS)
    assert all(hasattr(diffusers, name) for name in NOT_TABLES)


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
