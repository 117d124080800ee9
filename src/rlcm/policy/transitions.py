"""One denoising step of any few-step sampler, as a Gaussian with table coefficients.

`TransitionTable` holds the coefficients, `transition` applies them. Sampling and updating call this one function, so that a
log-probability is always that of the distribution which drew the action. `rlcm.policy.samplers` builds the tables.

Letters in shapes: B images, H steps (rows of the table).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rlcm.errors import SamplerError


@dataclass(frozen=True, slots=True, eq=False)
class TransitionTable:
    """A sampler of H steps. Row i is the i-th network call, for a latent x and the network's output m:

        x0   = clip(ax x + am m)             predicted clean latent
        mean = b0 x0 + bx x + bm m
        x'   = mean + std z,  z ~ N(0, I)    the next latent, which is the policy's action
        the network's input is c_in x at time `timesteps`

    A row whose std is 0 draws no noise: it is no action, and has no log-probability.
    """

    name: str
    """The scheduler's class without "Scheduler", e.g. LCM."""
    timesteps: Tensor
    """[H] fp32, in the scheduler's own units: 0..999, 250 ln(sigma), 1000 sigma or an angle. Denoisers convert it."""
    c_in: Tensor
    """[H] fp32, factor of the network's input."""
    ax: Tensor
    """[H] fp32, x in x0."""
    am: Tensor
    """[H] fp32, m in x0."""
    b0: Tensor
    """[H] fp32, x0 in the mean."""
    bx: Tensor
    """[H] fp32, x in the mean."""
    bm: Tensor
    """[H] fp32, m in the mean."""
    std: Tensor
    """[H] fp32, >= 0."""
    clip: float | None = None
    """x0 is clamped to [-clip, clip]; None leaves it alone. No gradient passes where it clamps."""

    def __len__(self) -> int:
        return len(self.std)

    def to(self, device: torch.device | str) -> TransitionTable:
        """Return the table on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **moved)

    def noisy_steps(self) -> Tensor:
        """Return the rows that draw noise, LongTensor [A] in order: the steps that are actions."""
        return self.std.nonzero().squeeze(1)

    def with_final_std(self, std: float) -> TransitionTable:
        """Return the table with the last step drawn from N(its own mean, std^2 I), so that it is an action too.

        Note:
            Few-step samplers end without noise, so the last network call learns nothing from a policy gradient. A small
            final std (.05, say, of a latent of unit variance) explores it. Use it in training and leave it out of
            evaluation: it adds noise to the picture, and the table no longer replays the scheduler's last step.

        Raises:
            ValueError: if std <= 0.
        """
        if not std > 0:
            raise ValueError(f"std={std}; use a positive number, in units of the sampler's latent.")
        return replace(self, std=torch.cat([self.std[:-1], torch.full_like(self.std[-1:], std)]))


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


def require_noise(table: TransitionTable) -> None:
    """Check that a policy gradient has something to learn from.

    Raises:
        SamplerError: if no step of the table draws noise.
    """
    if not len(table.noisy_steps()):
        raise SamplerError(
            f"num_steps={len(table)}: the sampler {table.name} draws no noise in any step, so no action has a probability and "
            "a policy gradient has nothing to learn from. Use more steps (sampler.steps=2 or more), or back-propagate a "
            "differentiable reward, which needs no noise (algorithm.loss=reward_backprop), or explore the last step "
            "(sampler.final_std=0.1; in code TransitionTable.with_final_std)."
        )
