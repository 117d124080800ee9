"""Tables of the few-step samplers, built from diffusers scheduler objects, and their check against `scheduler.step`.

A scheduler is read, never imported: its config, its timesteps and its noise levels. Coefficients are computed in float64 from
the scheduler's own numbers and stored in float32. docs/samplers.md lists what is supported and how to add a sampler.

Symbols: t timestep, abar = alphas_cumprod[t], sigma = scheduler.sigmas, m model output; a prime marks the next step.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import SamplerError
from rlcm.policy.transitions import transition
from rlcm.types import TransitionTable

REPLAY_TOLERANCE = 1e-5
"""Largest accepted relative difference between a table and `scheduler.step`, in fp32."""


def build_table(scheduler: Any, num_steps: int, *, eta: float | None = None, **kwargs: Any) -> TransitionTable:
    """Return the table of a diffusers scheduler for `num_steps` steps.

    Calls `scheduler.set_timesteps`, so that afterwards the scheduler object stands at the same schedule.

    Args:
        scheduler: a diffusers scheduler; one of the classes in `BUILDERS`.
        num_steps: network calls of one image, >= 1. One step is a legal table (it draws no noise, see `require_noise`).
        eta: stochasticity of TCD (default .3) and DDIM (default 1), in (0, 1]; no other sampler has it.
        kwargs: what the sampler's builder accepts: original_inference_steps and timesteps (LCM, TCD), timesteps
            (CMStochasticIterative: indices; DDPM), timesteps, max_timesteps and intermediate_timesteps (SCM), sigmas and mu
            (the flow-matching ones). None means not given.

    Raises:
        SamplerError: if the sampler cannot be written as a table, or a setting does not fit it.
    """
    class_name = type(scheduler).__name__
    if class_name not in BUILDERS:
        reason = NOT_TABLES.get(class_name, "it is not a supported sampler")
        instead = f"one of {', '.join(BUILDERS)}"
        if class_name in NOT_TABLES:
            instead = _FLOW if class_name.startswith("FlowMatch") else _DIFFUSION
        raise SamplerError(
            f"scheduler={class_name} cannot be written as a table of Gaussian steps: {reason}. Use {instead}; "
            "TheNewScheduler.from_config(pipeline.scheduler.config) converts one."
        )
    if num_steps < 1:
        raise SamplerError(f"num_steps={num_steps}; use 1 or more.")
    builder = BUILDERS[class_name]
    options = {**({} if eta is None else {"eta": eta}), **{key: value for key, value in kwargs.items() if value is not None}}
    accepted = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key, value in options.items():
        if key not in accepted:
            raise SamplerError(
                f"{key}={value!r} is no setting of {class_name}, which accepts {', '.join(accepted) or 'none'}; remove {key}."
            )
    try:
        return builder(scheduler, num_steps, **options)
    except ValueError as error:
        settings = ", ".join(f"{key}={value!r}" for key, value in {"num_steps": num_steps, **options}.items())
        raise SamplerError(
            f"{class_name} does not accept {settings}: {error} In a configuration these are sampler.steps (--steps of "
            "`rlcm sample`), timesteps, eta and original_inference_steps of sampler."
        ) from error


def replay_error(
    table: TransitionTable, scheduler: Any, num_steps: int, *, eta: float | None = None, seed: int = 0, **kwargs: Any
) -> float:
    """Largest relative difference between the table and the scheduler's own step, over all steps.

    The table's chain runs on random model outputs; from each of its states `scheduler.step` takes the same step, with the
    same noise for every image (one generator an image). Input scaling is compared as well.

    Args:
        table: the table to check, without a final std of its own.
        scheduler: the scheduler it was built from; a copy is stepped, the object itself is left alone.
        num_steps: as given to `build_table`.
        eta: as given to `build_table`.
        seed: of the model outputs and the noise.
        kwargs: as given to `build_table`.

    Raises:
        ValueError: if the table does not have num_steps rows.

    Returns:
        max over images and steps of |x'_table - x'_scheduler| / max(|x'_scheduler|, |x| / 50), Euclidean norms; NaN if
        either is not finite.
    """
    if len(table) != num_steps:
        raise ValueError(f"num_steps={num_steps}, but the table has {len(table)} steps; use the number it was built with.")
    oracle = copy.deepcopy(scheduler)
    build_table(oracle, num_steps, eta=eta, **kwargs)
    name = type(oracle).__name__
    if name == "CMStochasticIterativeScheduler":
        # In fp32 its last std is the root of a rounding error, which is negative for about a quarter of all sigma_min.
        sigmas = oracle.sigmas.double()
        oracle.sigmas = torch.where(_above(sigmas, oracle.config.sigma_min), sigmas, oracle.config.sigma_min)
    if "eta" in inspect.signature(BUILDERS[name]).parameters:
        default = inspect.signature(BUILDERS[name]).parameters["eta"].default
        step_options = {"eta": default if eta is None else eta}
    else:
        step_options = {}

    table = table.to("cpu")
    shape = (3, 4, 8, 8)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=source) * float(getattr(oracle, "init_noise_sigma", 1.0))
    errors = []
    for i in range(len(table)):
        t, m = oracle.timesteps[i].cpu(), torch.randn(shape, generator=source)
        seeds = [seed + 1 + i * shape[0] + k for k in range(shape[0])]
        noise = torch.cat([torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed(s)) for s in seeds])
        scaled = oracle.scale_model_input(x, t) if hasattr(oracle, "scale_model_input") else x
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        expected = oracle.step(m, t, x, generator=generators, return_dict=False, **step_options)[0]
        _, mean, std = transition(table, x, m, torch.full((shape[0],), i))
        errors.append(_relative(table.c_in[i] * x, scaled, floor=0.0))
        x_next = mean + std.view(-1, 1, 1, 1) * noise
        # A step that shrinks the latent a thousandfold (zero terminal SNR: sigma 4096 to 4) keeps the large one's rounding.
        errors.append(_relative(x_next, expected, floor=x.flatten(1).norm(dim=1) / 50))
        x = x_next
    return float(torch.cat(errors).max())


def check_replay(
    table: TransitionTable, scheduler: Any, num_steps: int, *, eta: float | None = None, seed: int = 0, **kwargs: Any
) -> float:
    """Return `replay_error`, having checked it: the start-up guard against a diffusers version that steps differently.

    Raises:
        SamplerError: if the error is above `REPLAY_TOLERANCE` or not a number.
    """
    error = replay_error(table, scheduler, num_steps, eta=eta, seed=seed, **kwargs)
    if not error <= REPLAY_TOLERANCE:
        raise SamplerError(
            f"The table of {table.name} differs from the scheduler's own step by {error:.2e} (relative), more than the "
            f"accepted {REPLAY_TOLERANCE:.0e}: it was built with other settings, or the installed diffusers steps differently. "
            "Build the table with the settings checked here, or install the diffusers version of constraints.txt."
        )
    return error


def _lcm(
    scheduler: Any, num_steps: int, *, original_inference_steps: int | None = None, timesteps: Sequence[int] | None = None
) -> TransitionTable:
    """Latent consistency model, Luo et al. 2023 (arXiv:2310.04378), multistep sampling.

        mean = sqrt(abar') (c_out x0 + c_skip x),  std = sqrt(1 - abar');  the last step: c_out x0 + c_skip x, no noise
        c_skip = .25 / ((k t)^2 + .25),  c_out = k t / sqrt((k t)^2 + .25),  k = config.timestep_scaling

    Note:
        `original_inference_steps` (50) is the schedule the model was distilled on; the timesteps are a subset of it. The
        scheduler's `strength` (image to image) is not accepted: with custom timesteps it leaves noise in the last step.
    """
    _set_timesteps(scheduler, num_steps, timesteps, original_inference_steps=original_inference_steps)
    t = scheduler.timesteps.cpu()
    abar, config = _alphas(scheduler), scheduler.config
    x0, _ = _predictions(abar[t], config)
    scaled = t.double() * config.timestep_scaling
    c_skip, c_out = 0.25 / (scaled.square() + 0.25), scaled / (scaled.square() + 0.25).sqrt()
    # The last step keeps the denoised latent: its "next" abar is 1.
    abar_next = torch.cat([abar[t[1:]], torch.ones(1, dtype=torch.float64)])
    return _table(
        scheduler,
        num_steps,
        x0=x0,
        b0=abar_next.sqrt() * c_out,
        bx=abar_next.sqrt() * c_skip,
        std=(1 - abar_next).sqrt(),
        clip=_clip(config),
    )


def _tcd(
    scheduler: Any,
    num_steps: int,
    *,
    eta: float = 0.3,
    original_inference_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
) -> TransitionTable:
    """Trajectory consistency distillation, Zheng et al. 2024 (arXiv:2402.19159), strategic stochastic sampling, eta = gamma.

        mean = sqrt(abar'/abar_s) (sqrt(abar_s) x0 + sqrt(1 - abar_s) eps),  std = sqrt(1 - abar'/abar_s)
        s = floor((1 - eta) t');  the last step: t' = s = 0, no noise

    Note:
        Stable Diffusion pipelines call the scheduler with eta = 0 unless told otherwise, which is deterministic: the table's
        default is the scheduler's own .3. `clip_sample` and `thresholding` have no effect in this scheduler.
    """
    _check_eta("TCDScheduler", eta)
    _set_timesteps(scheduler, num_steps, timesteps, original_inference_steps=original_inference_steps)
    t, abar = scheduler.timesteps.cpu(), _alphas(scheduler)
    t_next = torch.cat([t[1:], torch.zeros(1, dtype=torch.long)])
    # The scheduler multiplies in float32; float64 can fall on the other side of an integer.
    abar_next, abar_s = abar[t_next], abar[torch.floor((1 - eta) * t_next).long()]
    x0, eps = _predictions(abar[t], scheduler.config)
    direction = (abar_next / abar_s * (1 - abar_s)).sqrt()
    return _table(
        scheduler,
        num_steps,
        x0=x0,
        b0=abar_next.sqrt(),
        bx=direction * eps[0],
        bm=direction * eps[1],
        std=(1 - abar_next / abar_s).sqrt(),
    )


def _consistency(scheduler: Any, num_steps: int, *, timesteps: Sequence[int] | None = None) -> TransitionTable:
    """Consistency model, Song et al. 2023 (arXiv:2303.01469), algorithm 1 and appendix C: variance exploding.

        mean = x0 = clamp(c_out m + c_skip x),  std = s_noise sqrt(sigma'^2 - e^2),  e = config.sigma_min
        c_skip = d^2 / ((sigma - e)^2 + d^2),  c_out = (sigma - e) d / sqrt(sigma^2 + d^2),  d = config.sigma_data

    Note:
        Custom timesteps are indices into the training schedule, e.g. [22, 0]. Steps that end at sigma_min get std 0: the
        scheduler's own value there is the root of a rounding error, and often NaN.
    """
    _set_timesteps(scheduler, num_steps, timesteps)
    config = scheduler.config
    d, e = config.sigma_data, config.sigma_min
    sigmas = scheduler.sigmas.cpu().double()
    sigma, sigma_next = sigmas[:-1], sigmas[1:]
    variance = torch.where(_above(sigma_next, e), sigma_next.square() - e**2, 0.0)
    norm = (sigma.square() + d**2).sqrt()
    return _table(
        scheduler,
        num_steps,
        x0=(d**2 / ((sigma - e).square() + d**2), (sigma - e) * d / norm),
        b0=torch.ones_like(sigma),
        std=config.s_noise * variance.sqrt(),
        c_in=1 / norm,
        clip=1.0 if config.clip_denoised else None,
    )


def _scm(
    scheduler: Any,
    num_steps: int,
    *,
    timesteps: Sequence[float] | None = None,
    max_timesteps: float | None = None,
    intermediate_timesteps: float | None = None,
) -> TransitionTable:
    """Continuous-time consistency model in TrigFlow angles, Lu and Song 2024 (arXiv:2410.11081); SANA-Sprint's sampler.

        x0 = cos(t) x - sin(t) m,  mean = cos(t') x0,  std = sin(t') config.sigma_data;  the last step: t' = 0, no noise

    Note:
        The schedule has num_steps + 1 angles, custom ones included, and ends at 0. It starts at `max_timesteps` (1.5708);
        two steps pass through `intermediate_timesteps` (1.3), which no other number of steps accepts. m is the TrigFlow
        velocity times sigma_data, as SANA-Sprint's pipeline computes it.
    """
    if scheduler.config.prediction_type != "trigflow":
        raise SamplerError(f"prediction_type={scheduler.config.prediction_type!r} of SCMScheduler; use 'trigflow'.")
    if timesteps is not None:
        angles = [float(angle) for angle in timesteps]
        if len(angles) != num_steps + 1 or angles[-1] != 0:
            raise SamplerError(f"timesteps={angles} of SCMScheduler: use num_steps + 1 = {num_steps + 1} angles that end at 0.")
        scheduler.set_timesteps(num_steps, timesteps=angles, max_timesteps=max_timesteps, intermediate_timesteps=None)
    else:
        middle = 1.3 if num_steps == 2 and intermediate_timesteps is None else intermediate_timesteps
        start = 1.57080 if max_timesteps is None else max_timesteps
        scheduler.set_timesteps(num_steps, max_timesteps=start, intermediate_timesteps=middle)
    angle = scheduler.timesteps.cpu().double()
    t, t_next = angle[:-1], angle[1:]
    return _table(
        scheduler,
        num_steps,
        x0=(t.cos(), -t.sin()),
        b0=t_next.cos(),
        std=t_next.sin() * scheduler.config.sigma_data,
    )


def _flow(scheduler: Any, num_steps: int, *, sigmas: Sequence[float] | None = None, mu: float | None = None) -> TransitionTable:
    """Stochastic flow matching, on the straight path x = (1 - sigma) x0 + sigma z of Lipman et al. 2022 (arXiv:2210.02747).

        x0 = x - sigma m,  mean = (1 - sigma') x0,  std = sigma';  the last step: sigma' = 0, no noise

    Note:
        `sigmas` are the noise levels before the scheduler's shift, e.g. [1, .75, .5, .25], as Flux's pipeline passes them;
        `mu` belongs to dynamic shifting and has no effect otherwise. Without `sigmas` the schedule runs down to the smallest
        training sigma, and shifts it twice (shift 3, 4 steps: 1, .858, .602, .0089): one step is then almost without noise,
        changes nothing and has huge ratios. Such a schedule is refused.
    """
    config = scheduler.config
    name = type(scheduler).__name__
    if config.invert_sigmas:
        raise SamplerError(f"invert_sigmas=True of {name} runs from data to noise; use a scheduler with invert_sigmas=False.")
    if getattr(scheduler, "_scale_factors", None):
        raise SamplerError(f"scale_factors of {name} changes the latent's size between steps; use a scheduler without it.")
    scheduler.set_timesteps(num_steps, sigmas=None if sigmas is None else list(sigmas), mu=mu)
    sigma = scheduler.sigmas.cpu().double()
    now, after = sigma[:-1], sigma[1:]
    if sigmas is None and num_steps > 1 and after[:-1].min() < 0.05:
        levels = [round(value, 4) for value in sigma.tolist()]
        even = [round(1 - i / num_steps, 4) for i in range(num_steps)]
        raise SamplerError(
            f"The default schedule of {name} in {num_steps} steps, sigma={levels}, has a step almost without noise, whose "
            f"ratios are huge and which changes nothing. Pass the noise levels before the shift, e.g. sigmas={even}."
        )
    return _table(scheduler, num_steps, x0=(torch.ones_like(now), -now), b0=1 - after, std=after)


def _flow_euler(
    scheduler: Any, num_steps: int, *, sigmas: Sequence[float] | None = None, mu: float | None = None
) -> TransitionTable:
    """Flow matching with `stochastic_sampling=True`: the equation of `_flow`; without it the sampler is an ODE solver."""
    if not scheduler.config.stochastic_sampling:
        raise SamplerError(
            "stochastic_sampling=False of FlowMatchEulerDiscreteScheduler is deterministic: there is no action to reinforce. "
            "Use FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, stochastic_sampling=True)."
        )
    return _flow(scheduler, num_steps, sigmas=sigmas, mu=mu)


def _euler_ancestral(scheduler: Any, num_steps: int) -> TransitionTable:
    """Ancestral Euler, Karras et al. 2022 (arXiv:2206.00364) sigmas with k-diffusion's ancestral step; SD-Turbo's sampler.

        mean = (1 - r) x0 + r x,  std = sigma' sqrt(1 - r),  r = sigma'^2 / sigma^2;  the last step: sigma' = 0, no noise
        x0 = x - sigma m  (epsilon),  x / (sigma^2 + 1) - m sigma / sqrt(sigma^2 + 1)  (v)

    Note:
        Latents are variance exploding: they start at init_noise_sigma. Turbo models need timestep_spacing="trailing".
    """
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.cpu().double()
    sigma, sigma_next = sigmas[:-1], sigmas[1:]
    norm = (sigma.square() + 1).sqrt()
    predictions = {"epsilon": (torch.ones_like(sigma), -sigma), "v_prediction": (1 / norm.square(), -sigma / norm)}
    kind = scheduler.config.prediction_type
    if kind not in predictions:
        raise SamplerError(f"prediction_type={kind!r} of EulerAncestralDiscreteScheduler; use one of {', '.join(predictions)}.")
    r = (sigma_next / sigma).square()
    return _table(
        scheduler,
        num_steps,
        x0=predictions[kind],
        b0=1 - r,
        bx=r,
        std=sigma_next * (1 - r).sqrt(),
        c_in=1 / norm,
    )


def _ddim(scheduler: Any, num_steps: int, *, eta: float = 1.0) -> TransitionTable:
    """DDIM, Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16; eta = 1 is DDPO's sampler (arXiv:2305.13301).

        mean = sqrt(abar_p) x0 + sqrt(1 - abar_p - std^2) eps
        std  = eta sqrt((1 - abar_p) / (1 - abar) (1 - abar / abar_p)),   p = t - num_train_timesteps // num_steps

    Note:
        p need not be the next timestep; the scheduler's rule is kept. With `clip_sample` x0 is clipped and eps is not derived
        again from it. The config of Stable Diffusion 1.5 (set_alpha_to_one=False, steps_offset=1) leaves a std of .0206 in
        the last of 50 steps; it is part of the scheduler's picture, so it stays, and that step is an action like the others.
    """
    _check_eta("DDIMScheduler", eta)
    scheduler.set_timesteps(num_steps)
    t, abar, config = scheduler.timesteps.cpu(), _alphas(scheduler), scheduler.config
    p = t - config.num_train_timesteps // num_steps
    abar_t, abar_p = abar[t], torch.where(p >= 0, abar[p.clamp(min=0)], scheduler.final_alpha_cumprod.double().cpu())
    if eta == 1 and not abar_t.all():
        raise SamplerError(
            "eta=1 of DDIMScheduler with rescale_betas_zero_snr=True: its first step takes the root of a rounding error, and "
            "can give NaN in diffusers. Use eta=.999, or rescale_betas_zero_snr=False."
        )
    variance = eta**2 * (1 - abar_p) / (1 - abar_t) * _beta(abar_t, abar_p)
    x0, eps = _predictions(abar_t, config)
    direction = (1 - abar_p - variance).clamp(min=0).sqrt()  # clamp: at eta = 1 rounding can leave -1e-17
    return _table(
        scheduler,
        num_steps,
        x0=x0,
        b0=abar_p.sqrt(),
        bx=direction * eps[0],
        bm=direction * eps[1],
        std=variance.sqrt(),
        clip=_clip(config),
    )


def _ddpm(scheduler: Any, num_steps: int, *, timesteps: Sequence[int] | None = None) -> TransitionTable:
    """DDPM with a fixed variance, Ho et al. 2020 (arXiv:2006.11239), eq. 7.

        mean = sqrt(abar') beta / (1 - abar) x0 + sqrt(alpha) (1 - abar') / (1 - abar) x,   alpha = abar / abar' = 1 - beta
        std^2 = beta (1 - abar') / (1 - abar)  (fixed_small, fixed_small_log)  or  beta  (fixed_large);  0 at t = 0

    Note:
        The last step has abar' = 1, so the small variance is 0 there (the scheduler draws noise of std 1e-10). With
        fixed_large and a last timestep above 0 its noise stays in the picture, and the step is an action.
    """
    config = scheduler.config
    kind = config.variance_type
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large"):
        reason = "gives NaN in diffusers" if kind == "fixed_large_log" else "makes the std depend on the network"
        raise SamplerError(
            f"variance_type={kind!r} of DDPMScheduler {reason}; use fixed_small, fixed_small_log or fixed_large, "
            "or DDIMScheduler with eta=1."
        )
    _set_timesteps(scheduler, num_steps, timesteps)
    t, abar = scheduler.timesteps.cpu(), _alphas(scheduler)
    abar_t, abar_next = abar[t], torch.cat([abar[t[1:]], torch.ones(1, dtype=torch.float64)])
    beta = _beta(abar_t, abar_next)
    variance = beta if kind == "fixed_large" else beta * (1 - abar_next) / (1 - abar_t)
    return _table(
        scheduler,
        num_steps,
        x0=_predictions(abar_t, config)[0],
        b0=abar_next.sqrt() * beta / (1 - abar_t),
        bx=(1 - beta).sqrt() * (1 - abar_next) / (1 - abar_t),
        std=torch.where(t > 0, variance, 0.0).sqrt(),
        clip=_clip(config),
    )


BUILDERS: Mapping[str, Callable[..., TransitionTable]] = {
    "LCMScheduler": _lcm,
    "TCDScheduler": _tcd,
    "CMStochasticIterativeScheduler": _consistency,
    "SCMScheduler": _scm,
    "FlowMatchLCMScheduler": _flow,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
}
"""The supported samplers, by the class name of their diffusers scheduler."""

_HISTORY = "its step needs earlier model outputs, so it is no Gaussian given the latent alone"
_CHURN = "it is deterministic, and with s_churn it adds noise before the network call, whose output then is not Gaussian"
_TWO_CALLS = "its step needs two network calls, so its noise passes through the network"
_DIFFUSION = "DDIMScheduler (eta=1) or EulerAncestralDiscreteScheduler"
_FLOW = "FlowMatchEulerDiscreteScheduler (stochastic_sampling=True) or FlowMatchLCMScheduler"

NOT_TABLES: Mapping[str, str] = {
    "DDIMInverseScheduler": "it runs from data to noise and draws none",
    "DEISMultistepScheduler": _HISTORY,
    "DPMSolverMultistepScheduler": _HISTORY,
    "DPMSolverSinglestepScheduler": _HISTORY,
    "DPMSolverSDEScheduler": _TWO_CALLS,
    "EDMDPMSolverMultistepScheduler": _HISTORY,
    "EDMEulerScheduler": _CHURN,
    "EulerDiscreteScheduler": _CHURN,
    "FlowMatchHeunDiscreteScheduler": _TWO_CALLS,
    "HeunDiscreteScheduler": _TWO_CALLS,
    "KDPM2AncestralDiscreteScheduler": _TWO_CALLS,
    "KDPM2DiscreteScheduler": _TWO_CALLS,
    "LMSDiscreteScheduler": _HISTORY,
    "PNDMScheduler": _HISTORY,
    "SASolverScheduler": _HISTORY,
    "UniPCMultistepScheduler": _HISTORY,
}
"""Well-known schedulers that cannot be a table, and why."""


def _table(
    scheduler: Any,
    num_steps: int,
    *,
    x0: tuple[Tensor, Tensor],
    b0: Tensor,
    std: Tensor,
    bx: Tensor | None = None,
    bm: Tensor | None = None,
    c_in: Tensor | None = None,
    clip: float | None = None,
) -> TransitionTable:
    name = type(scheduler).__name__
    if len(std) != num_steps:
        raise SamplerError(
            f"num_steps={num_steps} of {name} gave a schedule of {len(std)} steps; use as many custom timesteps as steps, or "
            "another number of steps."
        )
    zeros, ones = torch.zeros_like(std), torch.ones_like(std)
    columns = {
        "timesteps": scheduler.timesteps[:num_steps].cpu(),
        "c_in": ones if c_in is None else c_in,
        "ax": x0[0],
        "am": x0[1],
        "b0": b0,
        "bx": zeros if bx is None else bx,
        "bm": zeros if bm is None else bm,
        "std": std,
    }
    for column, values in columns.items():
        if not values.isfinite().all():
            raise SamplerError(
                f"The coefficient {column} of {name} is not finite: {values.tolist()}. With rescale_betas_zero_snr=True an "
                "epsilon prediction is undefined at the first timestep; use prediction_type='v_prediction', or do not rescale."
            )
    return TransitionTable(
        name=name.removesuffix("Scheduler"), clip=clip, **{column: values.float() for column, values in columns.items()}
    )


def _set_timesteps(scheduler: Any, num_steps: int, timesteps: Sequence[int] | None, **options: Any) -> None:
    if timesteps is None:
        scheduler.set_timesteps(num_steps, **options)
    else:
        scheduler.set_timesteps(timesteps=list(timesteps), **options)


def _alphas(scheduler: Any) -> Tensor:
    alphas: Tensor = scheduler.alphas_cumprod.cpu().double()
    return alphas


def _beta(abar: Tensor, abar_next: Tensor) -> Tensor:
    # The quotient is rounded as the scheduler rounds it: beta is down to 1e-4, so that rounding is up to 1e-3 of it.
    return 1 - (abar / abar_next).float().double()


def _predictions(abar: Tensor, config: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Coefficients (of x, of m) of x0 and of eps, for a variance-preserving x = sqrt(abar) x0 + sqrt(1 - abar) eps."""
    a, s = abar.sqrt(), (1 - abar).sqrt()
    zeros, ones = torch.zeros_like(a), torch.ones_like(a)
    kinds = {
        "epsilon": ((1 / a, -s / a), (zeros, ones)),
        "sample": ((zeros, ones), (1 / s, -a / s)),
        "v_prediction": ((a, -s), (s, a)),
    }
    if config.prediction_type not in kinds:
        raise SamplerError(f"prediction_type={config.prediction_type!r} of the scheduler; use one of {', '.join(kinds)}.")
    return kinds[config.prediction_type]


def _clip(config: Any) -> float | None:
    if config.thresholding:
        raise SamplerError(
            "thresholding=True of the scheduler scales every image by a quantile of itself, so its step is no table of "
            "coefficients; use thresholding=False (clip_sample=True clips to a fixed range)."
        )
    return float(config.clip_sample_range) if config.clip_sample else None


def _check_eta(name: str, eta: float) -> None:
    if not 0 < eta <= 1:
        reason = "is deterministic, so there is no action to reinforce" if eta == 0 else "is out of range"
        raise SamplerError(f"eta={eta} of {name} {reason}; use 0 < eta <= 1 (TCD: .3, DDIM: 1).")


def _above(sigma: Tensor, sigma_min: float) -> Tensor:
    return sigma > sigma_min * math.sqrt(1 + 1e-6)  # closer than that is sigma_min itself, rounded to float32


def _relative(actual: Tensor, expected: Tensor, floor: Tensor | float) -> Tensor:
    return (actual - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1).clamp(min=floor)
