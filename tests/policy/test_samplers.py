"""Every sampler's table against its diffusers scheduler, and what is refused."""

import math

import diffusers
import pytest
import torch
from sampler_matrix import SAMPLERS, SHORT, SIGMAS, V, every_sampler, sampler, scheduler_of

from rlcm.errors import SamplerError
from rlcm.policy.samplers import BUILDERS, NOT_TABLES, build_table, check_replay
from rlcm.policy.transitions import transition


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


# A share of the noise drawn anew is no step of diffusers; test_flow_sampler.py has its closed form.
SHARES = {name for name, (kind, _, _, settings) in SAMPLERS.items() if kind == "FlowMatchEulerDiscrete" and "eta" in settings}


@pytest.mark.parametrize(
    "name", [name for name in SAMPLERS if not name.endswith(("-1000", "-nan-in-diffusers")) and name not in SHARES]
)
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


@pytest.mark.parametrize("name", [name for name in SHORT if name not in SHARES])
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
    "flow-eta-2": ("FlowMatchEulerDiscrete", {}, 4, {**SIGMAS, "eta": 1.5}, "eta=1.5.*out of range; use 0 < eta <= 1"),
    "flow-eta-below-0": ("FlowMatchEulerDiscrete", {}, 4, {**SIGMAS, "eta": -0.1}, "eta=-0.1.*out of range"),
    "flow-lcm-eta": ("FlowMatchLCM", {}, 4, {**SIGMAS, "eta": 0.5}, "eta=0.5 is no setting of FlowMatchLCMScheduler"),
    "flow-karras": ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True}, 4, SIGMAS, "use_karras_sigmas=False"),
    "flow-lcm-beta": ("FlowMatchLCM", {"use_beta_sigmas": True}, 4, SIGMAS, "use_beta_sigmas=False"),
    "flow-exponential": ("FlowMatchEulerDiscrete", {"use_exponential_sigmas": True}, 4, SIGMAS, "use_exponential_sigmas=False"),
    "flow-ends-at-0": ("FlowMatchEulerDiscrete", {}, 3, {"sigmas": [1, 0.5, 0]}, r"above 0.*sigmas=\[1.0, 0.6667, 0.3333\]"),
    "flow-timesteps": ("FlowMatchEulerDiscrete", {}, 2, {"sigmas": [999, 499]}, "not all above 0 and up to 1"),
    "flow-default-eta": ("FlowMatchEulerDiscrete", {"shift": 3.0}, 4, {"eta": 0.5}, "almost without noise"),
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
