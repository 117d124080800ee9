"""Watching the evaluations: which weights were best, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlcm.errors import ConfigError
from rlcm.rewards import RewardMix
from rlcm.training.evaluate import GUARD, EvaluationSettings


class Verdict(NamedTuple):
    """What an evaluation says about the run."""

    is_best: bool
    """The best so far, and better than the base model."""
    stop: str | None
    """Why to stop, or None."""


class Watch:
    """Keeps the best value of a metric, counts evaluations without a new best, and holds others above a floor.

    Args:
        best: the metric by which the best weights are chosen; see `metric_value`.
        patience: evaluations without a new best after which to stop; None never stops.
        least: metrics, and the share of their value before training under which to stop.
    """

    def __init__(self, best: str, patience: int | None, least: Mapping[str, float]) -> None:
        self.metric, self.patience, self.least = best, patience, dict(least)
        self.base: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.waited = 0

    def look(self, summary: Mapping[str, Any], number: int) -> Verdict:
        """Take in the evaluation after round `number`; the first one is the base model's.

        Raises:
            ConfigError: if an evaluation has no such metric.
        """
        value = metric_value(summary, self.metric)
        if not self.base:
            for name in self.least:
                if not metric_value(summary, name) > 0:
                    raise ConfigError(
                        f"evaluation.least: {name} is {metric_value(summary, name):.4g} before training, and a share has a meaning "
                        "for positive figures only; leave it out."
                    )
            self.base = {name: metric_value(summary, name) for name in self.least} | {self.metric: value}
            self.best = {"round": number, "value": value}
            return Verdict(False, None)
        if below := self.below(summary):
            return Verdict(False, below)
        if value > self.best["value"]:
            self.best, self.waited = {"round": number, "value": value}, 0
            return Verdict(True, None)
        self.waited += 1
        return Verdict(False, self.impatience())

    def below(self, summary: Mapping[str, Any]) -> str | None:
        """Return which metric an evaluation has below its floor, in words, or None; the base model was looked at before."""
        for name, share in self.least.items():
            now, limit = metric_value(summary, name), share * self.base[name]
            if now < limit:
                return f"{name} is {now:.4g}, below {share:g} of its {self.base[name]:.4g} before training"
        return None

    def impatience(self) -> str | None:
        """Return that there was no new best for too long, in words, or None."""
        if self.patience is None or self.waited < self.patience:
            return None
        return (
            f"{self.waited} evaluation{'s' * (self.waited > 1)} brought no better {self.metric} than {self.best['value']:.4g} of round "
            f"{self.best['round']:.0f}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far, as JSON-able values."""
        return {"base": self.base, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.base, self.best, self.waited = dict(state["base"]), dict(state["best"]), state["waited"]


def require_figures(
    settings: EvaluationSettings,
    rewards: RewardMix,
    held_out: RewardMix | None,
    judged: Sequence[str],
    diversity: Sequence[str],
) -> None:
    """Do nothing if evaluations can have the figures that `best` and `least` name.

    Args:
        judged: what the judge answers.
        diversity: names of the figures of diversity.

    Raises:
        ConfigError: if one cannot be there. What components a reward will have is not known yet.
    """
    labels = {"rewards": rewards, "held_out": held_out}
    known = {group: [part.label for part in mix.parts] if mix else [] for group, mix in labels.items()}
    known |= {"judge": list(judged), "guard": [*GUARD, *diversity]}
    alone = ["reward", *(["kl"] if settings.diversity_images else [])]
    for setting, name in _named(settings):
        group, _, rest = name.removeprefix("-").partition(".")
        label = rest.partition("/")[0] if group in labels else rest
        if label not in known[group] if group in known else rest or group not in alone:
            may_be = [*alone, *(f"{group}.{key}" for group, keys in known.items() for key in keys)]
            raise ConfigError(
                f"evaluation.{setting} names {name!r}, and there is no such figure; it may be {', '.join(may_be)}, with a minus in "
                "front where less is better."
            )


def require_noise_for_figures(settings: EvaluationSettings, noisy: bool) -> None:
    """Do nothing if the sampler draws noise, or no figure that `best` and `least` name needs it.

    Raises:
        ConfigError: if one does: without noise the divergence from the base model is not defined.
    """
    for setting, name in _named(settings):
        if name.removeprefix("-") == "kl" and not noisy:
            raise ConfigError(
                f"evaluation.{setting} names {name!r}, and no step of this sampler draws noise, so there is no such figure; name "
                "another one, such as reward, or use more steps (sampler.steps=2)."
            )


def _named(settings: EvaluationSettings) -> list[tuple[str, str]]:
    """Return the figures that settings name, each after its setting."""
    return [("best", settings.best), *(("least", name) for name in settings.least)]


def metric_value(summary: Mapping[str, Any], name: str) -> float:
    """Return a figure of an evaluation's summary: `reward`, or `rewards.LABEL`, `held_out.LABEL`, `judge.QUESTION`, `guard.NAME`,
    `kl`.

    A minus in front turns the sign, for what is better when lower: `-guard.saturated`.

    Raises:
        ConfigError: if there is none of that name.
    """
    sign, key = (-1.0, name[1:]) if name.startswith("-") else (1.0, name)
    known = dict(flat_summary(summary))
    if key not in known:
        raise ConfigError(f"evaluation: there is no metric {key!r}; this run has {', '.join(known)}.")
    return sign * known[key]


def flat_summary(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the means of a summary under the names of `metric_value`."""
    found = {"reward": summary["reward"]["mean"]}
    for group in ("rewards", "held_out", "judge", "guard"):
        for key, value in (summary.get(group) or {}).items():
            found[f"{group}.{key}"] = value["mean"] if isinstance(value, Mapping) else value
    return found | ({"kl": summary["kl"]["mean"]} if "kl" in summary else {})  # a sampler without noise has none
