"""The sum of several rewards, weighted and normalised, itself a reward."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlcm.errors import CheckpointError, ConfigError, MissingFileError, RewardError, RLCMError
from rlcm.rewards.boundary import UserCode, UserCodeError
from rlcm.rewards.composition.answers import ask, attribute, check_inputs, not_finite, usable
from rlcm.rewards.composition.normalising import RunningNorm, norm_of
from rlcm.rewards.composition.scores import RawScores, RewardPart, Scores

logger = logging.getLogger(__name__)


class RewardMix:
    """The sum of several rewards, itself a reward.

    `score` asks the rewards and touches no state, so that it can run in a thread beside sampling; `mix` updates the
    running statistics and sums. Calling the object does both. `look` sums for evaluations, on a scale that stays.

    Args:
        rewards: the parts, as `RewardPart` or as tuples of its leading fields (label, callable, weight, normalise).

    Raises:
        ValueError: if there is no reward, a label is used twice, a weight is not finite, or a time limit is not positive.
    """

    def __init__(self, rewards: Sequence[RewardPart | tuple[Any, ...]]) -> None:
        self.parts = [RewardPart(*part) for part in rewards]
        labels = [part.label for part in self.parts]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"rewards need distinct labels, and at least one; got {labels}.")
        if not all(math.isfinite(part.weight) for part in self.parts):
            raise ValueError(f"the weights must be finite; got {[part.weight for part in self.parts]}.")
        if not all(part.timeout_seconds > 0 for part in self.parts):
            raise ValueError(f"timeout_seconds must be positive; got {[part.timeout_seconds for part in self.parts]}.")
        self._names: dict[str, frozenset[str]] = {}
        """Of what every reward answered first: itself, or its components."""
        self.norms: dict[str, RunningNorm] = {}
        self.looks: dict[str, RunningNorm] = {}
        self.stop_wanted: Callable[[], bool] = lambda: False
        """Whether the run is to stop. A reward that hangs then ends it by an error, also where its failures are skipped."""
        self._code = {part.label: UserCode(f"reward {part.label}", part.timeout_seconds) for part in self.parts}

    @property
    def may_run_beside(self) -> bool:
        """Whether scoring leaves alone what goes on beside it: all rewards were asked once, and none changed the process's state."""
        return all(code.is_known and not code.meddles for code in self._code.values())

    @property
    def display(self) -> dict[str, str] | None:
        """How the sum is shown to people, where it is a single reward that says so by a `display` attribute, and no penalty."""
        first, *others = self.parts
        return None if others or first.weight < 0 else attribute(first, "display")

    @property
    def primary_metric(self) -> dict[str, Any] | None:
        """How a run shows its reward: `display`, and of a single penalty the reward itself, better where its sum is worse."""
        first, *others = self.parts
        if others or first.weight >= 0:
            return self.display
        shown = {"label": first.label.replace("_", " ")} | dict(attribute(first, "display") or {})
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
        check_inputs(images, prompts, metadata)
        images = images.detach()
        raw = RawScores({}, torch.ones(len(prompts), dtype=torch.bool))
        for part in self.parts:
            try:
                answer = self._ask(part, images, prompts, metadata)
            except RewardError as error:
                if part.on_failure == "stop" or self._code[part.label].was_stopped:
                    raise
                self._skip(raw, part.label, str(error), len(prompts))
                raw.valid[:] = False
                continue
            for name, values in answer.items():
                values = values.detach().cpu()
                finite = usable(values)
                if not finite.all():
                    text = not_finite(name, values, prompts)
                    if part.on_failure == "stop":
                        raise RewardError(text)
                    self._skip(raw, part.label, text, int((~finite).sum()))
                    values[~finite] = math.nan
                    raw.valid &= finite
                raw.parts[name] = values
        return raw

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Ask every reward that has a method `check_prompts` whether it can score pictures of all prompts.

        Raises:
            ConfigError: as a reward says it, or if its method raises; the text names the reward.
        """
        for part in self.parts:
            check = attribute(part, "check_prompts")
            if check is None:
                continue
            beside = deepcopy(list(metadata))
            try:
                UserCode(f"reward {part.label}", part.timeout_seconds).run(partial(check, list(prompts), beside))
            except MissingFileError as error:
                raise MissingFileError(f"reward {part.label}: {error}") from error
            except RLCMError as error:
                raise ConfigError(f"reward {part.label}: {error}") from error
            except UserCodeError as error:
                raise ConfigError(f"reward {part.label}: its check_prompts {error}.") from error.__cause__

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

    def weights(self, names: Iterable[str]) -> dict[str, float]:
        """Return the factors in the sum of rewards and components, by their names among a score's `parts`."""
        return {name: self._settings(name).weight for name in names}

    def look(self, raw: RawScores) -> Scores:
        """Return the weighted sum of what `score` returned for an evaluation; the running statistics are not involved.

        Normalised rewards are on the scale of the first evaluation: they begin at 0 and then tell the gain in standard deviations
        of the base model, so that evaluations can be compared with each other.
        """
        missing = [name for name in raw.parts if name not in self.looks]
        scores = self._scores(raw, self.looks, update=False)
        for name in missing:
            if self._settings(name).normalise and raw.valid.any():
                self.looks[name] = norm_of(raw.parts[name][raw.valid])
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
        check_inputs(images, prompts, metadata)
        parts: dict[str, Tensor] = {}
        for part in self.parts:
            answer = self._ask(part, images, prompts, metadata)
            for name, values in answer.items():
                if not usable(values).all():
                    raise RewardError(not_finite(name, values, prompts))
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
                values = (norm if norm and norm.count else norm_of(values[valid]))(values)
            total = total + part.weight * values
        return total

    def _ask(
        self, part: RewardPart, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None
    ) -> dict[str, Tensor]:
        answer = ask(part, self._code[part.label], images, prompts, metadata, self.stop_wanted)
        names = self._names.setdefault(part.label, frozenset(answer))
        if names != answer.keys():
            raise RewardError(
                f"reward {part.label} returned {_listed(answer)}, and {_listed(names)} in an earlier call; return the same "
                "ones at every call."
            )
        return answer

    def _settings(self, name: str) -> RewardPart:
        """Return the part that a label, or label/component, belongs to."""
        return next(part for part in self.parts if part.label == name.partition("/")[0])

    def _opaque(self) -> list[str]:
        return [part.label for part in self.parts if not attribute(part, "differentiable")]

    def _skip(self, raw: RawScores, label: str, text: str, count: int) -> None:
        logger.warning("reward %s: %d samples drop out: %s", label, count, text)
        raw.failures.append(text)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name.partition("/")[2] or "one number an image" for name in sorted(names))
