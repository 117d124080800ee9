"""A reward is asked, and what it is given and what it answers is checked."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcm.errors import ConfigError, RewardError, RLCMError
from rlcm.rewards.boundary import UserCode, UserCodeError
from rlcm.rewards.composition.scores import RewardPart
from rlcm.rewards.user import call_reward

LARGEST = 1e15
"""Of a score, either way: squares of larger ones, and sums of those, leave single precision."""
PROMPTS_SHOWN = 3
"""Prompts that an error quotes."""


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
    part: RewardPart,
    code: UserCode,
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]] | None,
    stop_wanted: Callable[[], bool] = lambda: False,
) -> dict[str, Tensor]:
    """Return the components of one reward's answer, [B] fp32 each, shapes checked; values may still be NaN.

    The reward works on copies, and what comes back is a copy.
    """
    own = images.clone()

    def score() -> dict[str, Tensor]:
        try:
            answer = call_reward(part.reward, own, prompts, metadata)
        except RLCMError as error:
            raise RewardError(f"reward {part.label}: {error}") from error
        return _components(part.label, answer, len(prompts))

    try:
        return code.run(score, stop_wanted)
    except UserCodeError as error:
        shown = ", ".join(repr(textwrap.shorten(prompt, 80)) for prompt in dict.fromkeys(prompts[:PROMPTS_SHOWN]))
        more = ", ..." if len(set(prompts)) > PROMPTS_SHOWN else ""
        raise RewardError(
            f"reward {part.label} {error}. It was asked about {len(prompts)} images, of {shown}{more}; "
            "`rlcm rewards try` calls a reward alone."
        ) from error.__cause__


def attribute(part: RewardPart, name: str) -> Any:
    """Return what a reward says of itself by an attribute, which may be the user's code, too; None where it has none.

    Raises:
        ConfigError: if it raises or does not answer.
    """
    try:
        return UserCode(f"reward {part.label}", part.timeout_seconds).run(lambda: getattr(part.reward, name, None))
    except UserCodeError as error:
        raise ConfigError(f"reward {part.label}: its attribute {name} {error}.") from error.__cause__


def _components(label: str, answer: Any, batch: int) -> dict[str, Tensor]:
    """Return what a reward answered by component; it runs within the boundary, as an answer may be of the user's own classes."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping) and not isinstance(answer[0], Mapping):
        answer = answer[0]  # values and what else there is to say of them, as the reward functions of ddpo-pytorch answer
    if not isinstance(answer, Mapping):
        return {label: _as_vector(label, answer, batch)}
    if not answer:
        raise RewardError(f"reward {label} returned an empty dict; return at least one component.")
    if any(not str(key).strip() for key in answer):
        raise RewardError(f"reward {label} returned a component without a name; name each of them: {{'name': numbers}}.")
    found = {f"{label}/{key}": _as_vector(f"{label}/{key}", value, batch) for key, value in answer.items()}
    if len(found) < len(answer):
        raise RewardError(f"reward {label} returned components of one name: {', '.join(map(str, answer))}.")
    return found


def _as_vector(name: str, answer: Any, batch: int) -> Tensor:
    """Return an answer as fp32 [B], a copy."""
    if answer is None:
        raise RewardError(f"reward {name} returned None; does the function lack a `return`?")
    try:
        # A generator may be endless; one number too many is enough to see that there are too many.
        values = _as_tensor(list(islice(answer, batch + 1)) if isinstance(answer, Iterator) else answer)
        shape = tuple(values.shape)
        values = values.to(torch.float32, copy=True)
    except Exception as error:
        raise RewardError(
            f"reward {name} returned {type(answer).__name__}, which is no list, array or tensor of {batch} numbers ({error})."
        ) from error
    if shape != (batch,):
        hints = {
            (batch, 1): "; return `scores.squeeze(-1)`",
            (): ", not one for all of them: such as `images.mean(dim=(1, 2, 3))`",
        }
        raise RewardError(
            f"reward {name} returned the shape {list(shape)} for {batch} images; it must return [{batch}], one number "
            f"an image{hints.get(shape, '')}."
        )
    return values


def _as_tensor(answer: Any) -> Tensor:
    """Return numbers as a tensor of their shape: of tensors, arrays, lists of them, and of all that `float` takes but text."""
    if isinstance(answer, Tensor):
        if answer.is_complex():
            raise TypeError("complex numbers")
        if answer.is_meta:
            raise TypeError("a tensor on the device meta has no values")
        return answer if answer.layout == torch.strided else answer.to_dense()
    if isinstance(answer, np.ndarray):
        if answer.dtype.kind == "O":
            return _as_tensor(answer.tolist())
        if answer.dtype.kind not in "biuf":
            raise TypeError(f"an array of {answer.dtype}")
        return torch.from_numpy(np.ma.filled(answer.astype(np.float64), np.nan))  # what is masked is no score
    if isinstance(answer, (str, bytes, bytearray, complex, np.complexfloating)):
        raise TypeError(f"{answer!r} is no number")
    if isinstance(answer, (Mapping, Set)):
        raise TypeError(f"a {type(answer).__name__} has no order of images")
    if isinstance(answer, Iterable):
        entries = [_as_tensor(entry) for entry in answer]
        return torch.stack(entries) if entries else torch.empty(0, device="cpu")
    return torch.tensor(float(answer), dtype=torch.float64, device="cpu")  # whatever the default has become


def usable(values: Tensor) -> Tensor:
    """Return which of the values [B] can be learnt from: booleans [B]."""
    return values.isfinite() & (values.abs() <= LARGEST)


def not_finite(name: str, values: Tensor, prompts: Sequence[str]) -> str:
    """Return what to say of an answer that holds what is not `usable`."""
    wrong = (~usable(values)).nonzero().flatten().tolist()
    index = wrong[0]
    return (
        f"reward {name} returned {values[index].item()} for image {index} (prompt {prompts[index]!r}), "
        f"{len(wrong)} of {len(prompts)} in all; every number must be finite, and no larger than {LARGEST:g}."
    )
