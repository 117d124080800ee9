"""Pictures of a pipeline as a run samples: what `rlcm sample` and a run's result draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlcm.pipelines import make_denoiser
from rlcm.pipelines.settings import ModelSettings, SamplerSettings
from rlcm.policy.rollout import decode_images, require_pictures, sample_latents
from rlcm.processes.usual import usual_torch
from rlcm.training.fitting import GRID, check_images


@usual_torch()
def draw_images(
    pipeline: Any,
    model: ModelSettings,
    sampler: SamplerSettings,
    prompts: Sequence[str],
    seed: int,
    count: int,
    setting: str = "--n",
) -> torch.Tensor:
    """Return [len(prompts) * count, 3, h, w] images; image j of every prompt has the seed `seed + j`.

    They are those that the plain pipeline draws with `generator=torch.Generator().manual_seed(seed + j)`.
    """
    denoiser = make_denoiser(pipeline, sampler, model)
    check_images(setting, count, denoiser, GRID * len(prompts))
    conditioning = denoiser.encode(prompts)
    index = torch.arange(len(prompts)).repeat_interleave(count)
    seeds = [seed + j for _ in prompts for j in range(count)]
    parts = []
    for rows in torch.arange(len(seeds)).split(64):
        latents = sample_latents(denoiser, denoiser.table, conditioning.take(index[rows]), [seeds[i] for i in rows.tolist()])
        parts.append(decode_images(denoiser, latents))
    return require_pictures(torch.cat(parts))
