"""How far apart pictures of one prompt are: in features of the judge and of CLIP, or, where there are none, in pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Features = Mapping[str, Callable[[Tensor], Tensor]]
"""From images [B, 3, h, w] to vectors [B, D] of length 1, by whose features they are: judge or clip."""


FIGURES = (*(f"{figure}_{seen}" for figure in ("diversity", "vendi") for seen in ("judge", "clip")), "diversity")
"""Names of the figures of `diversity_of`."""


def diversity_of(images: Tensor, prompts: Sequence[str], features: Features) -> dict[str, float]:
    """Return how far apart pictures of one prompt are; nothing where no prompt comes twice.

    diversity_judge, diversity_clip   `mean_distance` in features of the built-in model's judge and of CLIP
    vendi_judge, vendi_clip           `vendi_score` in them
    diversity                         `pixel_distance`, for models that have neither

    Args:
        images: [B, 3, h, w] in [0, 1].
        prompts: B.
        features: see `Features`.
    """
    if len(set(prompts)) == len(prompts):
        return {}
    found: dict[str, float] = {}
    for name, seen in features.items():
        rows = seen(images).detach().float().cpu()
        found |= {f"diversity_{name}": mean_distance(rows, prompts), f"vendi_{name}": vendi_score(rows, prompts)}
    return found or {"diversity": pixel_distance(images, prompts)}


def mean_distance(features: Tensor, prompts: Sequence[str]) -> float:
    """Return the mean distance of two pictures of one prompt: over the pairs of a prompt, then over the prompts.

        d = mean over i != j of 1 - cos(f_i, f_j),   0 where all are alike, 1 where all are orthogonal

    Args:
        features: [B, D] of length 1.
        prompts: B; those with a single picture do not count.

    Raises:
        ValueError: if no prompt comes twice.
    """
    groups = _groups(features, prompts)
    return _mean([float((1 - rows @ rows.T).sum()) / (len(rows) * (len(rows) - 1)) for rows in groups])


def vendi_score(features: Tensor, prompts: Sequence[str]) -> float:
    """Return how many different pictures of one prompt there are in effect, the mean over the prompts.

        exp(-sum_i l_i log l_i),   l the eigenvalues of K / n,  K_ij = cos(f_i, f_j) of a prompt's n pictures

    1 where all are alike, n where all are orthogonal. Friedman & Dieng 2023, "The Vendi score" (arXiv:2210.02410), eq. 2.

    Args:
        features: [B, D] of length 1.
        prompts: B; those with a single picture do not count.

    Raises:
        ValueError: if no prompt comes twice.
    """
    scores = []
    for rows in _groups(features, prompts):
        shares = torch.linalg.eigvalsh(rows @ rows.T / len(rows)).clamp(min=0)
        scores.append(math.exp(-float(torch.xlogy(shares, shares).sum())))
    return _mean(scores)


def pixel_distance(images: Tensor, prompts: Sequence[str]) -> float:
    """Return the mean root-mean-square distance of two pictures of one prompt, at 16x16 pixels, so that content counts.

    Args:
        images: [B, 3, h, w] in [0, 1].
        prompts: B; those with a single picture do not count.

    Raises:
        ValueError: if no prompt comes twice.
    """
    small = torch.nn.functional.interpolate(images, size=(16, 16), mode="area").flatten(1)
    distances = [
        float(torch.cdist(rows, rows).sum()) / (len(rows) * (len(rows) - 1) * math.sqrt(rows.shape[1]))
        for rows in _groups(small, prompts)
    ]
    return _mean(distances)


def _groups(rows: Tensor, prompts: Sequence[str]) -> Iterator[Tensor]:
    """Yield the rows of each prompt that has two or more, fp64."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    for own in places.values():
        if len(own) > 1:
            yield rows[own].double()


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("no prompt comes twice, so there are no two pictures to compare.")
    return sum(values) / len(values)
