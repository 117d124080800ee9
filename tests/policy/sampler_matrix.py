"""The matrix of samplers: a new sampler joins every test by one line of `SAMPLERS`."""

import diffusers
import pytest

from rlcm.policy.samplers import build_table

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
    "flow-euler-4-eta": ("FlowMatchEulerDiscrete", {"shift": 3.0}, 4, {**SIGMAS, "eta": 0.4}),
    "flow-euler-4-eta-mu": (
        "FlowMatchEulerDiscrete",
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "stochastic_sampling": True},
        4,
        {**SIGMAS, "mu": 1.15, "eta": 0.8},
    ),
    "flow-euler-3-eta-terminal": ("FlowMatchEulerDiscrete", {"shift_terminal": 0.1}, 3, {"eta": 0.1}),
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
SHORT = [name for name in SAMPLERS if not name.endswith("-1000")]
every_short_sampler = pytest.mark.parametrize("name", SHORT)


def scheduler_of(kind, config=None):
    return getattr(diffusers, f"{kind}Scheduler")(**(config or {}))


def sampler(name):
    kind, config, num_steps, settings = SAMPLERS[name]
    scheduler = scheduler_of(kind, config)
    return build_table(scheduler, num_steps, **settings), scheduler
