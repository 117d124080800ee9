"""The check of a table against `scheduler.step`."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import SamplerError
from rlcm.policy.samplers.build import BUILDERS, build_table
from rlcm.policy.samplers.columns import above
from rlcm.policy.transitions import transition
from rlcm.types import TransitionTable

REPLAY_TOLERANCE = 1e-5
"""Largest accepted relative difference between a table and `scheduler.step`, in fp32."""


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
        max over images and steps of |x'make_table - x'_scheduler| / max(|x'_scheduler|, |x| / 50), Euclidean norms; NaN if
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
        oracle.sigmas = torch.where(above(sigmas, oracle.config.sigma_min), sigmas, oracle.config.sigma_min)
    parameters = inspect.signature(BUILDERS[name]).parameters
    if "eta" in parameters and eta is None:
        eta = parameters["eta"].default
    take_step = _step(oracle, eta)
    if name == "FlowMatchEulerDiscreteScheduler":
        take_step = _flow_step(oracle, 1.0 if eta is None else eta)

    table = table.to("cpu")
    shape = (3, 4, 8, 8)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=source) * float(getattr(oracle, "init_noise_sigma", 1.0))
    errors = []
    for i in range(len(table)):
        m = torch.randn(shape, generator=source)
        seeds = [seed + 1 + i * shape[0] + k for k in range(shape[0])]
        noise = torch.cat([torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed(s)) for s in seeds])
        scaled = oracle.scale_model_input(x, oracle.timesteps[i].cpu()) if hasattr(oracle, "scale_model_input") else x
        expected = take_step(i, m, x, seeds, noise)
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


def _step(oracle: Any, eta: float | None) -> Callable[[int, Tensor, Tensor, list[int], Tensor], Tensor]:
    """Return the scheduler's own step, from row, model output, latent, and an image's seed and noise, which are the same draw."""
    options = {} if eta is None else {"eta": eta}

    def take(i: int, m: Tensor, x: Tensor, seeds: list[int], noise: Tensor) -> Tensor:
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        result: Tensor = oracle.step(m, oracle.timesteps[i].cpu(), x, generator=generators, return_dict=False, **options)[0]
        return result

    return take


def _flow_step(oracle: Any, eta: float) -> Callable[[int, Tensor, Tensor, list[int], Tensor], Tensor]:
    """Return a flow-matching step of any eta, put together from the scheduler's own two: one keeps all noise, one keeps none.

    Both have (1 - sigma') x0 in common, and sigma' times their noise beside it.
    """
    keeping, drawing = copy.deepcopy(oracle), copy.deepcopy(oracle)
    keeping.register_to_config(stochastic_sampling=False)
    drawing.register_to_config(stochastic_sampling=True)
    step_keeping, step_drawing = _step(keeping, None), _step(drawing, None)
    kept, anew = math.sin((1 - eta) * math.pi / 2), math.sin(eta * math.pi / 2)

    def take(i: int, m: Tensor, x: Tensor, seeds: list[int], noise: Tensor) -> Tensor:
        old, new = step_keeping(i, m, x, seeds, noise), step_drawing(i, m, x, seeds, noise)
        if kept in (0, 1):  # one of the two as it is, without the rounding of a sum
            return old if kept else new
        return kept * old + anew * new + (1 - kept - anew) * (new - oracle.sigmas[i + 1] * noise)

    return take


def _relative(actual: Tensor, expected: Tensor, floor: Tensor | float) -> Tensor:
    return (actual - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1).clamp(min=floor)
