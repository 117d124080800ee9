"""What the builders share: the columns of a table, checked, and the coefficients that schedulers have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import SamplerError
from rlcm.types import TransitionTable


def make_table(
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
    quiet: tuple[Tensor, ...] | None = None,
) -> TransitionTable:
    """Return the table of a scheduler's steps from its columns in float64, each [num_steps].

    Args:
        scheduler: gives name and timesteps.
        num_steps: how many rows there must be.
        x0: coefficients of x and of m in the prediction of the clean latent.
        b0: coefficient of that prediction in the mean.
        std: standard deviation of the noise.
        bx: coefficient of x in the mean; None: 0.
        bm: coefficient of m in the mean; None: 0.
        c_in: factor of the network's input; None: 1.
        clip: the prediction is clipped to +-clip; None: not at all.
        quiet: b0, bx and, if it is not 0, bm of a row that is to draw no noise; None: as with it.

    Raises:
        SamplerError: if the schedule is of another length, or a coefficient is not finite.
    """
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
    if quiet is not None:
        columns["quiet"] = torch.stack([*quiet, *[zeros] * (3 - len(quiet))])
    for column, values in columns.items():
        if not values.isfinite().all():
            raise SamplerError(
                f"The coefficient {column} of {name} is not finite: {values.tolist()}. With rescale_betas_zero_snr=True an "
                "epsilon prediction is undefined at the first timestep; use prediction_type='v_prediction', or do not rescale."
            )
    return TransitionTable(
        name=name.removesuffix("Scheduler"), clip=clip, **{column: values.float() for column, values in columns.items()}
    )


def set_timesteps(scheduler: Any, num_steps: int, timesteps: Sequence[int] | None, **options: Any) -> None:
    """Set the scheduler's own schedule of num_steps steps, or the custom timesteps."""
    if timesteps is None:
        scheduler.set_timesteps(num_steps, **options)
    else:
        scheduler.set_timesteps(timesteps=list(timesteps), **options)


def alphas_of(scheduler: Any) -> Tensor:
    """Return the scheduler's alphas_cumprod in float64 on the CPU."""
    alphas: Tensor = scheduler.alphas_cumprod.cpu().double()
    return alphas


def beta_of(abar: Tensor, abar_next: Tensor) -> Tensor:
    """Return beta = 1 - abar / abar' of steps from abar to abar'."""
    # The quotient is rounded as the scheduler rounds it: beta is down to 1e-4, so that rounding is up to 1e-3 of it.
    return 1 - (abar / abar_next).float().double()


def predictions_of(abar: Tensor, config: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
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


def kept_noise(signal: Tensor, noise: Tensor, signal_next: Tensor, noise_next: Tensor) -> tuple[Tensor, Tensor]:
    """Return b0 and bx of steps that draw no noise, but take the noise that the latent has, as the clean latent shows it.

        x = signal x0 + noise z;   x' = signal' x0 + noise' z = (signal' - r signal) x0 + r x,   r = noise' / noise

    They keep the noise level that the sampler's own step leads to, which the next network call expects. On the way from a
    diffusion model's eps this is DDIM with eta = 0, on a straight path it is Euler.

    Args:
        signal: [H], of x0 in the latent.
        noise: [H], >= 0, of z in the latent.
        signal_next: [H], after the step.
        noise_next: [H], >= 0, after the step.
    """
    r = torch.where(noise_next > 0, noise_next / noise, 0.0)
    return signal_next - r * signal, r


def clip_of(config: Any) -> float | None:
    """Return the range that the prediction of the clean latent is clipped to; None: not at all.

    Raises:
        SamplerError: if it is clipped by a quantile of each image.
    """
    if config.thresholding:
        raise SamplerError(
            "thresholding=True of the scheduler scales every image by a quantile of itself, so its step is no table of "
            "coefficients; use thresholding=False (clip_sample=True clips to a fixed range)."
        )
    return float(config.clip_sample_range) if config.clip_sample else None


def check_eta(name: str, eta: float) -> None:
    """Check that a step of this eta draws noise.

    Raises:
        SamplerError: if eta is not in (0, 1].
    """
    if not 0 < eta <= 1:
        reason = "is deterministic, so there is no action to reinforce" if eta == 0 else "is out of range"
        raise SamplerError(f"eta={eta} of {name} {reason}; use 0 < eta <= 1 (TCD: .3, DDIM: 1).")


def above(sigma: Tensor, sigma_min: float) -> Tensor:
    """Return which noise levels are above the smallest one."""
    return sigma > sigma_min * math.sqrt(1 + 1e-6)  # closer than that is sigma_min itself, rounded to float32
