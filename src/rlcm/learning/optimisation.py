"""Optimiser steps: gradients summed over processes, shortened, checked, and taken or left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rlcm.errors import TrainingError
from rlcm.policy.policy import Policy
from rlcm.processes.distributed import World
from rlcm.settings import Settings

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """The optimiser of the adapter."""

    name: Literal["adam", "adamw"] = "adamw"
    """`adam` or `adamw`."""
    lr: float = Field(default=6.5e-4, gt=0, le=1)
    """Learning rate at its peak."""
    schedule: Literal["constant", "linear"] = "linear"
    """`linear` falls to 0 over the run, by its rounds or its time limit, whichever is nearer to its end."""
    max_pace: float = Field(default=4.0, ge=1, le=100)
    """Factor by which the learning rate may leave its schedule, either way. It starts at 1, grows by up to a ninth a round while
    the divergence from the base model is below its share of `algorithm.kl_target` (which rises evenly over the run, by its rounds
    or its time limit), and falls by up to an eleventh above it, down to 1/max_pace; 1 is off."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient."""
    eps: float = Field(default=1e-8, gt=0, le=1)
    """Added to the denominator."""
    weight_decay: float = Field(default=1e-4, ge=0, le=1000)
    """Decay of the weights, decoupled with `adamw`."""
    fused: Literal["auto", "always", "never"] = "auto"
    """Take a step in one kernel for all weights; `auto` on CUDA devices only, where it is faster."""
    max_grad_norm: float = Field(default=5.0, gt=0)
    """Gradients longer than this are shortened to it."""


def make_optimizer(settings: OptimizerSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    on_cuda = all(parameter.device.type == "cuda" for parameter in parameters)
    return kinds[settings.name](
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=settings.fused == "always" or (settings.fused == "auto" and on_cuda) or None,
    )


class Optimisation:
    """The optimiser of a policy's adapter, over all processes."""

    max_skipped_in_a_row = 3

    def __init__(self, policy: Policy, settings: OptimizerSettings, world: World) -> None:
        self.policy, self.settings, self.world = policy, settings, world
        self.optimizer = make_optimizer(settings, policy.parameters)
        self.skipped_in_a_row = 0

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a state of the optimiser.

        Raises:
            ValueError: if it is that of other weights; torch would find out in the next step.
        """
        self.optimizer.load_state_dict(dict(state))
        for parameter, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                if isinstance(moment, Tensor) and moment.dim() and moment.shape != parameter.shape:
                    raise ValueError(f"the optimiser's {name} is {tuple(moment.shape)}, its weight {tuple(parameter.shape)}")

    def begin(self, lr: float | None = None) -> None:
        """Forget the last gradients; take up the round's learning rate where one is given."""
        self.optimizer.zero_grad(set_to_none=True)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr

    def gather_gradients(self) -> float:
        """Sum the gradients over all processes, shorten them, and return the norm that they had."""
        self.world.sum_gradients(self.policy.parameters)
        return float(nn.utils.clip_grad_norm_(self.policy.parameters, self.settings.max_grad_norm))

    def step(self, loss: float, norm: float) -> dict[str, float]:
        """Take a step along the gradients, or leave it out where loss or gradient norm is not finite; return the metrics.

        Raises:
            TrainingError: after three steps in a row that were left out.
        """
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizer.step()
            self.policy.follow()
            self.skipped_in_a_row = 0
            return {"grad_norm": norm, "skipped_updates": 0.0}
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.max_skipped_in_a_row:
            raise TrainingError(
                f"{self.skipped_in_a_row} updates in a row had a loss or gradient that is not finite (loss {loss}, gradient norm "
                f"{norm}), so training stops here. Lower optimizer.lr={self.settings.lr}, raise algorithm.kl_coefficient, or use "
                "model.precision=fp32."
            )
        return {"skipped_updates": 1.0}
