"""Latent consistency distillation: the loss that turns a diffusion UNet into a few-step consistency UNet.

Luo et al. 2023, "Latent Consistency Models" (arXiv 2310.04378), algorithm 1, with one addition: the length of the solver's
jump is a setting of each call, so that training may begin with long jumps and end with the paper's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlcm.types import Conditioning

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """A variance-preserving schedule and what the network predicts under it."""

    alphas_cumprod: Tensor
    """[T] float32."""
    prediction_type: str
    """epsilon, v_prediction or sample."""

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """Return the schedule of a diffusers scheduler that has `alphas_cumprod`."""
        return cls(scheduler.alphas_cumprod.float(), scheduler.config.prediction_type)

    def rates(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) at integer timesteps [B], shaped to multiply `like` [B, ...]."""
        shape = (-1, *(1,) * (like.dim() - 1))
        abar = self.alphas_cumprod.to(like.device)[timestep].view(shape)
        return abar.sqrt(), (1 - abar).sqrt()

    def add_noise(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return x_t = alpha x_0 + sigma eps."""
        alpha, sigma = self.rates(timestep, x_0)
        return alpha * x_0 + sigma * noise

    def velocity(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return v = alpha eps - sigma x_0."""
        alpha, sigma = self.rates(timestep, x_0)
        return alpha * noise - sigma * x_0

    def predict(self, x_t: Tensor, output: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's (x_0, eps), fp32, from its output at x_t."""
        alpha, sigma = self.rates(timestep, x_t)
        output = output.float()
        if self.prediction_type == "epsilon":
            return (x_t - sigma * output) / alpha, output
        if self.prediction_type == "v_prediction":
            return alpha * x_t - sigma * output, alpha * output + sigma * x_t
        if self.prediction_type == "sample":
            return output, (x_t - alpha * output) / sigma
        raise ValueError(f"prediction_type={self.prediction_type!r} is none of epsilon, v_prediction, sample")

    def consistency(self, x_t: Tensor, output: Tensor, timestep: Tensor) -> Tensor:
        """Return f(x_t, t) = c_skip x_t + c_out x_0, with LCM's boundary condition f(x, 0) = x."""
        scaled = (TIMESTEP_SCALING * timestep.float()).view(-1, *(1,) * (x_t.dim() - 1)).to(x_t.device)
        root = scaled.square() + SIGMA_DATA**2
        return SIGMA_DATA**2 / root * x_t + scaled / root.sqrt() * self.predict(x_t, output, timestep)[0]


def guidance_embedding(scale: Tensor, size: int) -> Tensor:
    """Return the sinusoidal embedding [B, size] of (guidance scale - 1) * 1000 that LCM networks take as timestep_cond.

    Args:
        scale: [B] guidance scales g >= 1; w = g - 1 is the paper's.
    """
    half = size // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=scale.device) * -(torch.log(torch.tensor(1e4)) / (half - 1))
    )
    angles = (scale.float() - 1)[:, None] * 1000.0 * frequencies[None]
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, size % 2))


def student_of(teacher: Any, guidance_size: int = 256) -> Any:
    """Return a copy of a diffusers UNet that also takes a guidance embedding; at first it ignores it."""
    config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    student = type(teacher).from_config({**config, "time_cond_proj_dim": guidance_size})
    missing = student.load_state_dict(teacher.state_dict(), strict=False).missing_keys
    if missing != ["time_embedding.cond_proj.weight"]:
        raise ValueError(f"the teacher's weights do not fit its own configuration: {missing} are missing")
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student.to(next(teacher.parameters()).device)


Run = Callable[[Any, Tensor, Tensor, Conditioning, "Tensor | None"], Tensor]
"""Calls a UNet: (unet, x, timestep, conditioning, timestep_cond) to its output."""


def run_unet(unet: Any, x: Tensor, timestep: Tensor, conditioning: Conditioning, timestep_cond: Tensor | None) -> Tensor:
    """Return a UNet's output; the conditioning's names are the UNet's own arguments."""
    return unet(x, timestep, timestep_cond=timestep_cond, **conditioning).sample


class Distiller:
    """Holds teacher, student and the student's slow copy, and computes the distillation loss.

    Args:
        teacher: frozen UNet; student: trainable UNet that takes `timestep_cond`.
        solver_steps: the DDIM grid's length (the paper's 50).
        target_decay: how much of the slow copy is kept at an update.
        run: how a UNet is called with a conditioning.
    """

    def __init__(
        self,
        teacher: Any,
        student: Any,
        schedule: NoiseSchedule,
        *,
        solver_steps: int = 50,
        target_decay: float = 0.95,
        run: Run = run_unet,
    ) -> None:
        self.run = run
        self.teacher, self.student, self.schedule = teacher.eval().requires_grad_(False), student, schedule
        self.target = copy.deepcopy(student).eval().requires_grad_(False)
        self.solver_steps, self.target_decay = solver_steps, target_decay
        self.stride = len(schedule.alphas_cumprod) // solver_steps

    def loss(
        self,
        x_0: Tensor,
        condition: Conditioning,
        unconditional: Conditioning,
        rng: torch.Generator,
        *,
        guidance: tuple[float, float],
        jump: int = 1,
        huber_c: float = 1e-3,
    ) -> Tensor:
        """Return the mean pseudo-Huber distance between f_student(x_t, t) and f_target(x_s, s), s = t - jump grid cells.

            x_s = DDIM(x_t, t -> s; x_0 = x_c + w (x_c - x_u), eps likewise);  d = sqrt((f - f')^2 + c^2) - c

        Args:
            x_0: [B, C, h, w] scaled data latents.
            condition, unconditional: B rows each, for the prompts and for the empty prompt.
            guidance: the range from which the guidance scale g = w + 1 is drawn uniformly.
            jump: grid cells of one solver jump.
        """
        size, device, schedule = len(x_0), x_0.device, self.schedule
        cell = torch.randint(self.solver_steps, (size,), generator=rng)
        t = ((cell + 1) * self.stride - 1).to(device)
        s = (t - jump * self.stride).clamp(min=0)
        noise = torch.randn(x_0.shape, generator=rng).to(device)
        x_t = schedule.add_noise(x_0, noise, t)
        low, high = guidance
        scale = (low + (high - low) * torch.rand(size, generator=rng)).to(device)
        embedding = guidance_embedding(scale, self.student.config.time_cond_proj_dim)
        w = (scale - 1).view(-1, *(1,) * (x_0.dim() - 1))
        with torch.no_grad():
            both = Conditioning.cat([condition, unconditional])
            output = self.run(self.teacher, torch.cat([x_t, x_t]), torch.cat([t, t]), both, None)
            x_c, eps_c = schedule.predict(x_t, output[:size], t)
            x_u, eps_u = schedule.predict(x_t, output[size:], t)
            x_s = schedule.add_noise(x_c + w * (x_c - x_u), eps_c + w * (eps_c - eps_u), s)
            wanted = schedule.consistency(x_s, self.run(self.target, x_s, s, condition, embedding), s)
        found = schedule.consistency(x_t, self.run(self.student, x_t, t, condition, embedding), t)
        return ((found - wanted).square() + huber_c**2).sqrt().mean() - huber_c

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow copy towards the student; call it after every optimiser step."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.student.parameters()), 1 - self.target_decay)
