"""Several rewards as one: every answer is checked, normalised if wished, weighted and summed.

    R_i = sum over rewards k of  w_k * sum over components c of  n_kc(r_kc(image_i, prompt_i))

with n the identity, or the running normalisation of `RunningNorm`.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcm.errors import CheckpointError, ConfigError, RewardError, RLCMError
from rlcm.rewards.settings import OnFailure
from rlcm.rewards.user import call_reward

logger = logging.getLogger(__name__)


class RewardPart(NamedTuple):
    """One reward of a mix."""

    label: str
    """What it is called in logs and tables."""
    reward: Callable[..., Any]
    """From images and prompts to values; see `rlcm.types.Reward`."""
    weight: float = 1.0
    """Its factor in the sum."""
    normalise: bool = False
    """Bring it to unit scale before weighting."""
    on_failure: OnFailure = "stop"
    """What is done where it fails: `stop`, or `skip` the samples."""


@dataclass(slots=True)
class RawScores:
    """What the rewards answered, before normalising and weighting."""

    parts: dict[str, Tensor]
    """[B] fp32 on the CPU by label, or by label/component; NaN where a sample was dropped."""
    valid: Tensor
    """[B] bool: scored by every reward. Only a reward set to `on_failure: skip` can make it False."""
    failures: list[str] = field(default_factory=list)
    """What went wrong where samples were dropped, one text a failed reward."""

    @staticmethod
    def cat(batches: Sequence[RawScores]) -> RawScores:
        """Return the scores of all batches, in order; a component that a batch lacks is NaN there.

        Raises:
            RewardError: if valid samples of two batches have different components.
        """
        labels = list(dict.fromkeys(label for batch in batches for label in batch.parts))
        for batch in batches:
            missing = [label for label in labels if label not in batch.parts]
            if missing and batch.valid.any():
                raise RewardError(f"the reward component {missing[0]} is in some batches and not in others.")
        parts = {
            label: torch.cat([batch.parts.get(label, torch.full((len(batch.valid),), math.nan)) for batch in batches])
            for label in labels
        }
        valid = torch.cat([batch.valid for batch in batches])
        return RawScores(parts, valid, [text for batch in batches for text in batch.failures])


@dataclass(slots=True)
class Scores:
    """The mixed reward of B samples, and what it is made of."""

    total: Tensor
    """[B] fp32: the weighted sum; NaN, never zero, where `valid` is False. On the CPU and without gradient, but for
    `RewardMix.differentiable`."""
    parts: dict[str, Tensor]
    """[B] fp32 on the CPU: the rewards' own values by label, before normalising and weighting."""
    valid: Tensor
    """[B] bool: samples to learn from; the others drop out of the round."""
    failures: list[str]
    """What went wrong where samples were dropped."""


class RunningNorm:
    """The running mean and standard deviation of one reward, and values normalised by them.

        n(r) = (r - mean) / (std + 1e-8),   or r - mean if all values seen are equal

    Mean and population variance weigh every sample by 2^(-age / half_life), age = samples seen since its batch; the first
    batches are thus weighted alike, and a reward that improves a hundredfold does not drag its early spread along. Batches
    are merged by the exact formula of Chan, Golub and LeVeque 1983, in float64. A batch is normalised by statistics
    that include it, so the first one is already of unit scale.
    """

    half_life = 2048.0

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.variance = 0.0

    def update(self, values: Tensor) -> None:
        """Take in the values [B] of a batch."""
        if not len(values):
            return
        new = values.detach().double().cpu()
        size, mean, variance = len(new), new.mean().item(), new.var(unbiased=False).item()
        old = self.count * 0.5 ** (size / self.half_life)
        count = old + size
        delta = mean - self.mean
        self.variance = (old * self.variance + size * variance) / count + delta * delta * old * size / (count * count)
        self.mean += delta * size / count
        self.count = count

    def __call__(self, values: Tensor) -> Tensor:
        """Return the values, normalised; differentiable in them."""
        std = math.sqrt(self.variance)
        # fp32 values that are closer than this are equal, and what is left is rounding.
        return (values - self.mean) / (std + 1e-8 if std > 1e-7 * abs(self.mean) else 1.0)


class RewardMix:
    """The sum of several rewards, itself a reward.

    `score` asks the rewards and touches no state, so that it can run in a thread beside sampling; `mix` updates the
    running statistics and sums. Calling the object does both. `look` sums for evaluations, on a scale that stays.

    Args:
        rewards: the parts, as `RewardPart` or as tuples of its leading fields (label, callable, weight, normalise).

    Raises:
        ValueError: if there is no reward, a label is used twice, or a weight is not finite.
    """

    def __init__(self, rewards: Sequence[RewardPart | tuple[Any, ...]]) -> None:
        self.parts = [RewardPart(*part) for part in rewards]
        labels = [part.label for part in self.parts]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"rewards need distinct labels, and at least one; got {labels}.")
        if not all(math.isfinite(part.weight) for part in self.parts):
            raise ValueError(f"the weights must be finite; got {[part.weight for part in self.parts]}.")
        self.norms: dict[str, RunningNorm] = {}
        self.looks: dict[str, RunningNorm] = {}

    @property
    def display(self) -> dict[str, str] | None:
        """How the sum is shown to people, where it is a single reward that says so by a `display` attribute, and no penalty."""
        first, *others = self.parts
        return None if others or first.weight < 0 else getattr(first.reward, "display", None)

    @property
    def primary_metric(self) -> dict[str, Any] | None:
        """How a run shows its reward: `display`, and of a single penalty the reward itself, better where its sum is worse."""
        first, *others = self.parts
        if others or first.weight >= 0:
            return self.display
        shown = {"label": first.label.replace("_", " ")} | dict(getattr(first.reward, "display", None) or {})
        return shown | {"better": "higher" if shown.get("better") == "lower" else "lower", "penalty": True}

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> Scores:
        """Return the scores of images [B, 3, h, w] in [0, 1] for B prompts. See `score` for the errors."""
        return self.mix(self.score(images, prompts, metadata))

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> RawScores:
        """Return every reward's own values; the running statistics stay as they are.

        Raises:
            ValueError: if images, prompts and metadata disagree in number or shape.
            RewardError: if the images are not finite; or if a reward that is set to stop raises, answers in the wrong
                shape, or answers NaN or infinity. The text names the reward, and the sample where there is one.
        """
        _check_inputs(images, prompts, metadata)
        images = images.detach()
        raw = RawScores({}, torch.ones(len(prompts), dtype=torch.bool))
        for part in self.parts:
            try:
                answer = _ask(part, images, prompts, metadata)
            except RewardError as error:
                if part.on_failure == "stop":
                    raise
                self._skip(raw, part.label, str(error), len(prompts))
                raw.valid[:] = False
                continue
            for name, values in answer.items():
                # A copy: dropped samples are marked in it, and the reward may keep its own.
                values = values.detach().cpu().clone()
                finite = values.isfinite()
                if not finite.all():
                    text = _not_finite(name, values, prompts)
                    if part.on_failure == "stop":
                        raise RewardError(text)
                    self._skip(raw, part.label, text, int((~finite).sum()))
                    values[~finite] = math.nan
                    raw.valid &= finite
                raw.parts[name] = values
        return raw

    def score_in_parts(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None, size: int
    ) -> RawScores:
        """Return what `score` does, asked for at most `size` images at a time; errors as `score`."""
        parts = [slice(start, start + size) for start in range(0, len(prompts), size)]
        return RawScores.cat([self.score(images[p], prompts[p], None if metadata is None else metadata[p]) for p in parts])

    def mix(self, raw: RawScores, *, update: bool = True) -> Scores:
        """Return the weighted sum of what `score` returned.

        Args:
            raw: the scores of a batch, or of a whole round joined by `RawScores.cat`.
            update: whether the valid samples enter the running statistics first. While there are none, those of the samples
                themselves are used.
        """
        return self._scores(raw, self.norms, update)

    def look(self, raw: RawScores) -> Scores:
        """Return the weighted sum of what `score` returned for an evaluation; the running statistics are not involved.

        Normalised rewards are on the scale of the first look: they begin at 0 and then tell the gain in standard deviations of
        the untrained model, so that looks can be compared with each other.
        """
        missing = [name for name in raw.parts if name not in self.looks]
        scores = self._scores(raw, self.looks, update=False)
        for name in missing:
            if self._settings(name).normalise and raw.valid.any():
                self.looks[name] = _norm_of(raw.parts[name][raw.valid])
        return scores

    @property
    def is_differentiable(self) -> bool:
        """Whether all rewards let gradients through to the images."""
        return not self._opaque()

    def require_differentiable(self) -> None:
        """Do nothing if gradients reach the images through every reward.

        Raises:
            ConfigError: if a reward is not marked `differentiable = True`; the text names it.
        """
        if self._opaque():
            able = ", ".join(part.label for part in self.parts if part.label not in self._opaque()) or "none of them"
            raise ConfigError(
                f"rewards {', '.join(self._opaque())} cannot be differentiated ({able} can); use a policy-gradient update, "
                "or remove them. A reward of your own says that it can by the attribute `differentiable = True`."
            )

    def differentiable(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        update: bool = True,
    ) -> Scores:
        """Return scores whose `total` carries the gradient, on the images' device; failures always stop.

        The running statistics are constants to the gradient. While there are none, those of the samples themselves are used.

        Raises:
            ConfigError: if a reward cannot be differentiated.
            RewardError: as `score`; and if a reward's answer is cut off from the images' graph.
        """
        self.require_differentiable()
        _check_inputs(images, prompts, metadata)
        parts: dict[str, Tensor] = {}
        for part in self.parts:
            answer = _ask(part, images, prompts, metadata)
            for name, values in answer.items():
                if not values.isfinite().all():
                    raise RewardError(_not_finite(name, values, prompts))
                if images.requires_grad and not values.requires_grad:
                    raise RewardError(f"the reward {name} claims to be differentiable, but its answer carries no gradient.")
                parts[name] = values.to(images.device)
        valid = torch.ones(len(prompts), dtype=torch.bool)
        total = self._sum(parts, valid.to(images.device), self.norms, update)
        return Scores(total, {name: values.detach().cpu() for name, values in parts.items()}, valid, [])

    def state_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the running statistics and those of the first look: plain numbers, exact in JSON."""
        kinds = {"training": self.norms, "looks": self.looks}
        return {kind: {label: dict(vars(norm)) for label, norm in norms.items()} for kind, norms in kinds.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            CheckpointError: if it is the state of other rewards than these.
        """
        normalised = {part.label for part in self.parts if part.normalise}

        def read(kind: str) -> dict[str, RunningNorm]:
            norms = {}
            for label, values in state[kind].items():
                if label.partition("/")[0] not in normalised or set(values) != set(vars(RunningNorm())):
                    raise CheckpointError(
                        f"the checkpoint holds statistics of the reward {label}, which this run does not normalise "
                        f"(it normalises {', '.join(sorted(normalised)) or 'none'}); resume with the rewards of the first run."
                    )
                norms[label] = RunningNorm()
                vars(norms[label]).update({key: float(value) for key, value in values.items()})
            return norms

        self.norms, self.looks = read("training"), read("looks")

    def _scores(self, raw: RawScores, norms: dict[str, RunningNorm], update: bool) -> Scores:
        total = self._sum(raw.parts, raw.valid, norms, update)
        total[~raw.valid] = math.nan
        return Scores(total, raw.parts, raw.valid, raw.failures)

    def _sum(self, parts: Mapping[str, Tensor], valid: Tensor, norms: dict[str, RunningNorm], update: bool) -> Tensor:
        total = torch.zeros(len(valid), dtype=torch.float32, device=valid.device)
        for name, values in parts.items():
            part = self._settings(name)
            if part.normalise:
                if update:
                    norms.setdefault(name, RunningNorm()).update(values[valid])
                norm = norms.get(name)
                values = (norm if norm and norm.count else _norm_of(values[valid]))(values)
            total = total + part.weight * values
        return total

    def _settings(self, name: str) -> RewardPart:
        """Return the part that a label, or label/component, belongs to."""
        return next(part for part in self.parts if part.label == name.partition("/")[0])

    def _opaque(self) -> list[str]:
        return [part.label for part in self.parts if not getattr(part.reward, "differentiable", False)]

    def _skip(self, raw: RawScores, label: str, text: str, count: int) -> None:
        logger.warning("reward %s: %d samples drop out of the round: %s", label, count, text)
        raw.failures.append(text)


def _norm_of(values: Tensor) -> RunningNorm:
    """Return the statistics of values [B] alone."""
    norm = RunningNorm()
    norm.update(values)
    return norm


def _ask(
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


def _not_finite(name: str, values: Tensor, prompts: Sequence[str]) -> str:
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    index = wrong[0]
    return (
        f"reward {name} returned {values[index].item()} for image {index} (prompt {prompts[index]!r}), "
        f"{len(wrong)} of {len(prompts)} in all; every number must be finite."
    )


def _check_inputs(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> None:
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
