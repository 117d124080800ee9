"""How the reward of a run is shown to people: its label, its unit, which way is better, and what it counts in the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlcm.report.samples import Samples
from rlcm.report.values import finite, mapping, mean_and_half


@dataclass(frozen=True, slots=True)
class Metric:
    """How the reward is shown to people."""

    label: str = "reward"
    unit: str = ""
    lower_is_better: bool = False
    reward: str | None = None
    """Label of the reward that it shows; None is their weighted sum."""
    penalty: bool = False
    """Whether that reward has a negative weight: the less of it, the better."""
    question: str | None = None
    """The judge's question whose answer is what the reward is for, such as `right`; None where it is for something else."""

    def shown(self, value: Any) -> float | None:
        """Return a reward as people read it: the negative of one that counts the other way than what people read."""
        number = finite(value)
        return -number if number is not None and self.lower_is_better != self.penalty else number

    def interval(self, evaluation: Mapping[str, Any]) -> tuple[float, float] | None:
        """Return mean and half-width of the 95 % interval of an evaluation."""
        found = mapping(evaluation.get("rewards")).get(self.reward) if self.reward else evaluation.get("reward")
        mean, half = mean_and_half(found)
        shown = self.shown(mean)
        return None if shown is None else (shown, half)

    @property
    def noun(self) -> str:
        """The label as it stands after "its"."""
        return self.label.removeprefix("the ")

    @property
    def name(self) -> str:
        """Its name among the figures of an evaluation."""
        return f"rewards.{self.reward}" if self.reward else "reward"

    def of_round(self, row: Mapping[str, Any]) -> float | None:
        """Return the mean of a round of training."""
        own = f"rewards/{self.reward}"
        return self.shown(row[own]) if self.reward and own in row else self._of_sum(row.get("reward"))

    def of_cell(self, samples: Samples, index: int) -> float | None:
        """Return the value of one picture."""
        own = samples.rewards.get(self.reward) if self.reward else None
        values = samples.rewards.get("total") if own is None else own
        if not isinstance(values, list) or index >= len(values):
            return None
        return self._of_sum(values[index]) if own is None else self.shown(values[index])

    def _of_sum(self, value: Any) -> float | None:
        """Return the weighted sum as people read it, where the reward itself is not known."""
        return replace(self, penalty=False).shown(value)


def weight_of(config: Mapping[str, Any], label: str) -> float | None:
    """Return what a reward, or a component of it, counts in the sum of a run; None where the run is not trained on it."""
    rewards = config.get("rewards")
    for entry in map(mapping, rewards if isinstance(rewards, list) else []):
        if (entry.get("label") or entry.get("name")) == label.partition("/")[0]:
            return finite(entry.get("weight", 1.0))
    return None
