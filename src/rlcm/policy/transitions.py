"""One denoising step of any few-step sampler, as a Gaussian with table coefficients.

`rlcm.types.TransitionTable` holds the coefficients, `transition` applies them. Sampling and updating call this one function, so that a
log-probability is always that of the distribution which drew the action. `rlcm.policy.samplers` builds the tables.

Letters in shapes: B images, H steps (rows of the table).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcm.errors import SamplerError
from rlcm.policy.window import ALL, Window, shown
from rlcm.types import TransitionTable

LEAST_ETA = 1e-6
"""Of an eta below this hardly any noise is left, or none in float32."""


def transition(table: TransitionTable, x: Tensor, model_output: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted clean latent, mean and std of the next latent.

        x0 = clip(ax x + am m);  mean = b0 x0 + bx x + bm m

    Args:
        table: on the device of the latents.
        x: [B, *latent] fp32. Carries grad.
        model_output: [B, *latent] fp32, m. Carries grad.
        step: LongTensor [B], rows of the table; images of one batch may be at different steps.

    Returns:
        x0 [B, *latent], mean [B, *latent], std [B], all fp32.

    Raises:
        ValueError: if the shapes disagree or a latent is in half precision.
    """
    if x.shape != model_output.shape or step.shape != x.shape[:1]:
        shapes = f"x {tuple(x.shape)}, model_output {tuple(model_output.shape)}, step {tuple(step.shape)}"
        raise ValueError(f"{shapes}: use [B, *latent], [B, *latent] and [B].")
    for tensor in (x, model_output):
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{tensor.dtype} latents round the policy's ratio away; cast at the network's input only, keep float32."
            )

    def rows(column: Tensor) -> Tensor:
        return column[step].view(-1, *[1] * (x.dim() - 1))

    x0 = rows(table.ax) * x + rows(table.am) * model_output
    if table.clip is not None:
        x0 = x0.clamp(-table.clip, table.clip)
    mean = rows(table.b0) * x0 + rows(table.bx) * x + rows(table.bm) * model_output
    return x0, mean, table.std[step]


def require_noise(table: TransitionTable, *, eta: float | None = None, window: Window = ALL) -> None:
    """Check that a policy gradient has something to learn from.

    Args:
        table: of the policy.
        eta: with which it was built.
        window: out of which steps draw noise, see `rlcm.policy.window`.

    Raises:
        SamplerError: if no step of the table draws noise.
    """
    if len(table.noisy_steps()):
        return
    if eta is not None and eta < LEAST_ETA:
        raise SamplerError(
            f"sampler.eta={eta:g} of {table.name} draws no noise in any step, so no action has a probability and a policy gradient has "
            "nothing to learn from. Use 0 < sampler.eta <= 1 (1 is the default), or back-propagate a differentiable reward, which "
            "needs no noise (algorithm.loss=reward_backprop)."
        )
    if window != ALL:
        raise SamplerError(
            f"sampler.noisy_steps={shown(window)}: none of these steps draws noise (the last step of a sampler mostly draws none), so "
            "a policy gradient has nothing to learn from. Use steps that do, such as sampler.noisy_steps=first:1 or "
            "sampler.noisy_steps=all."
        )
    raise SamplerError(
        f"num_steps={len(table)}: the sampler {table.name} draws no noise in any step, so no action has a probability and "
        "a policy gradient has nothing to learn from. Use more steps (sampler.steps=2 or more), or back-propagate a "
        "differentiable reward, which needs no noise (algorithm.loss=reward_backprop), or explore the last step "
        "(sampler.final_std=0.1; in code TransitionTable.with_final_std)."
    )
