"""A reward is asked, and what it is given and what it answers is checked."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import RewardError, RLCMError
from rlcm.rewards.composition.scores import RewardPart
from rlcm.rewards.user import call_reward


def check_inputs(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> None:
    """Check that images, prompts and metadata fit each other, and that the images are finite.

    Raises:
        ValueError: if they disagree in number or shape.
        RewardError: if an image holds NaN or infinity.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(prompts) or not len(prompts):
        raise ValueError(
            f"images {list(images.shape)} and {len(prompts)} prompts do not fit; images must be [B, 3, h, w], B > 0."
        )
    if metadata is not None and len(metadata) != len(prompts):
        raise ValueError(f"{len(metadata)} metadata entries do not fit {len(prompts)} prompts.")
    finite = images.detach().flatten(1).isfinite().all(1)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise RewardError(
            f"image {index} (prompt {prompts[index]!r}) holds NaN or infinity, {int((~finite).sum())} of {len(prompts)} do; "
            "the model has diverged, or overflows in half precision."
        )


def ask(
    part: RewardPart, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None
) -> dict[str, Tensor]:
    """Return the components of one reward's answer, [B] fp32 each, shapes checked; values may still be NaN."""
    version = images._version
    try:
        answer = call_reward(part.reward, images, prompts, metadata)
    except RLCMError as error:
        raise RewardError(f"reward {part.label}: {error}") from error
    except Exception as error:
        raise RewardError(f"reward {part.label} raised {type(error).__name__}: {error} ({_place(error)}).") from error
    if images._version != version:
        raise RewardError(f"reward {part.label} wrote into the images it was given; let it work on `images.clone()`.")
    if isinstance(answer, Mapping):
        if not answer:
            raise RewardError(f"reward {part.label} returned an empty dict; return at least one component.")
        return {f"{part.label}/{key}": _as_vector(f"{part.label}/{key}", value, len(prompts)) for key, value in answer.items()}
    return {part.label: _as_vector(part.label, answer, len(prompts))}


def _place(error: Exception) -> str:
    """Return where an error was raised: the last line that is in no installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1])
    return f"{PurePath(frame.filename).name}, line {frame.lineno}; `rlcm rewards try` calls a reward alone"


def _as_vector(name: str, answer: Any, batch: int) -> Tensor:
    """Return an answer as fp32 [B]."""
    if answer is None:
        raise RewardError(f"reward {name} returned None; does the function lack a `return`?")
    try:
        values = answer if isinstance(answer, Tensor) else torch.as_tensor(answer)
        if values.is_complex():
            raise ValueError("complex numbers")
    except (ValueError, TypeError, RuntimeError) as error:
        raise RewardError(
            f"reward {name} returned {type(answer).__name__}, which is no list, array or tensor of {batch} numbers ({error})."
        ) from error
    if values.shape != (batch,):
        hints = {
            (batch, 1): "; return `scores.squeeze(-1)`",
            (): ", not one for all of them: such as `images.mean(dim=(1, 2, 3))`",
        }
        hint = hints.get(tuple(values.shape), "")
        raise RewardError(
            f"reward {name} returned the shape {list(values.shape)} for {batch} images; it must return [{batch}], one number "
            f"an image{hint}."
        )
    return values.float()


def not_finite(name: str, values: Tensor, prompts: Sequence[str]) -> str:
    """Return what to say of an answer that holds NaN or infinity."""
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    index = wrong[0]
    return (
        f"reward {name} returned {values[index].item()} for image {index} (prompt {prompts[index]!r}), "
        f"{len(wrong)} of {len(prompts)} in all; every number must be finite."
    )
