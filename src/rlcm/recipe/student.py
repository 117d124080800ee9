"""Distils the consistency student: the teacher's guided trajectories are solved once, and the student learns their ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlcm.builtin.vocabulary import Asked
from rlcm.distillation.fit import Fit, device, fit
from rlcm.distillation.loss import NoiseSchedule, student_of
from rlcm.distillation.solved import solve, solved_loss
from rlcm.recipe.latents import Captions, captions, seeded
from rlcm.recipe.teacher import student_scheduler
from rlcm.types import Conditioning

GUIDANCE = (1.0, 7.0)
"""The range of guidance scales that the student is distilled for."""
NODES = 12
"""How often the teacher is asked on a trajectory from pure noise."""
FROM_NOISE = 0.6
"""The share of trajectories from pure noise; the others begin at pictures with noise on them."""


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Solved trajectories: states [N, K, 16, 8, 8] fp16, timesteps [N, K], ends [N, 16, 8, 8], guidance [N], captions [N]."""

    states: Tensor
    timesteps: Tensor
    ends: Tensor
    guidance: Tensor
    texts: list[str]


def solve_trajectories(
    teacher: Any,
    latents: Tensor,
    asked: list[Asked],
    words: Captions,
    count: int,
    folder: Path,
    seed: int,
    batch_size: int,
) -> Trajectories:
    """Return `count` solved trajectories; solved once, a file a batch, then read from `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    schedule = NoiseSchedule.of(student_scheduler())
    parts, texts = [], []
    for number in range(-(-count // batch_size)):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + number)
        index = torch.randint(len(latents), (batch_size,), generator=rng)
        named = captions([asked[i] for i in index.tolist()], seeded(rng))
        texts += named
        file = folder / f"{number:05d}.safetensors"
        if not file.exists():
            x_0 = latents[index].to(device()).float()
            noise = torch.randn(x_0.shape, generator=rng).to(device())
            timesteps = _timesteps(batch_size, rng).to(device())
            low, high = GUIDANCE
            guidance = (low + (high - low) * torch.rand(batch_size, generator=rng)).to(device())
            pure = timesteps[:, 0] == len(schedule.alphas_cumprod) - 1
            x_t = torch.where(pure.view(-1, 1, 1, 1), noise, schedule.add_noise(x_0, noise, timesteps[:, 0]))
            with torch.no_grad():
                condition = Conditioning(encoder_hidden_states=words.embed(named))
                empty = Conditioning(encoder_hidden_states=words.embed([""]).expand(batch_size, -1, -1))
            states, ends = solve(teacher, schedule, x_t, timesteps, condition, empty, guidance)
            solved = {
                "states": states.half().cpu(),
                "ends": ends.half().cpu(),
                "timesteps": timesteps.cpu(),
                "guidance": guidance.cpu(),
            }
            partial = file.with_suffix(".partial")
            save_file(solved, partial)
            partial.rename(file)
            print(f"trajectories {(number + 1) * batch_size}", flush=True)
        parts.append(load_file(file))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Trajectories(**joined, texts=texts)


def _timesteps(count: int, rng: torch.Generator) -> Tensor:
    """Return falling timesteps [count, NODES]: from 999 or from somewhere below, at places of their own in every row."""
    start = torch.where(torch.rand(count, generator=rng) < FROM_NOISE, 999.0, 150 + 849 * torch.rand(count, generator=rng))
    places = torch.arange(NODES) + (torch.rand(count, NODES, generator=rng) - 0.5) * 0.9
    places[:, 0] = 0
    return (start[:, None] * (1 - places / NODES)).round().long().clamp(min=1)


def train_student(
    teacher: Any, trajectories: Trajectories, words: Captions, work: Path, settings: Fit, seed: int, batch_size: int
) -> Any:
    """Return the consistency student; a quarter of every batch begins at the first state of a trajectory."""
    torch.manual_seed(seed)
    student = student_of(teacher).requires_grad_(True)
    schedule = NoiseSchedule.of(student_scheduler())

    def loss(rng: torch.Generator, _progress: float) -> dict[str, Tensor]:
        row = torch.randint(len(trajectories.ends), (batch_size,), generator=rng)
        node = torch.randint(NODES, (batch_size,), generator=rng)
        node[: batch_size // 4] = 0
        with torch.no_grad():
            condition = Conditioning(encoder_hidden_states=words.embed([trajectories.texts[i] for i in row.tolist()]))
        x_t = trajectories.states[row, node].to(device()).float()
        end, t = trajectories.ends[row].to(device()).float(), trajectories.timesteps[row, node].to(device())
        return {"loss": solved_loss(student, schedule, x_t, t, end, condition, trajectories.guidance[row].to(device()))}

    fit("student", student, loss, settings, work, seed)
    return student.eval()
