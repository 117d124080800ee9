"""What could be read of a run directory, and what follows from it: the outcome, the pictures of before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlcm.report.metric import Metric
from rlcm.report.samples import Pair, Samples, Shot
from rlcm.report.values import finite, mapping

WEIGHTS, BEST = (f"{folder}/pytorch_lora_weights.safetensors" for folder in ("final", "best"))
DEPENDS_ON = "depends_on.json"
"""What the run depends on, as digests, and where it went on with something else."""
STUDY = "evaluation/eval.json"
"""What `rlcm eval` leaves in a run."""


@dataclass(slots=True)
class Run:
    """What could be read of a run directory."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    config_damaged: str = ""
    """What is wrong with config.yaml, where it is no YAML or lacks settings that the run wrote into it."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    final_round: int | None = None
    """The round whose weights are in final/; None before there are any."""
    metric: Metric = field(default_factory=Metric)
    samples: list[Samples] = field(default_factory=list)
    extremes: Samples | None = None
    """The best, the median and the worst picture of every prompt, three a row."""
    study: dict[str, Any] = field(default_factory=dict)
    """What `rlcm eval` found."""
    altered: list[str] = field(default_factory=list)
    """After which rounds it went on with something that changes its meaning, on which the user insisted; a sentence each."""
    missing: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Seconds of sampling and learning."""
        found = [finite(row.get("seconds")) for row in [*self.rounds[-1:], *self.evaluations[-1:]]]
        return max((s for s in found if s is not None), default=None)

    @property
    def outcome(self) -> dict[str, Any]:
        """The evaluation of the weights in final/, or the last one; empty where there is none."""
        chosen = [e for e in self.evaluations if e["round"] == self.final_round] or self.evaluations
        return chosen[-1] if chosen else {}

    @property
    def goes_on(self) -> bool:
        """Whether rounds came after the weights in final/ that have not led to new ones: a run made longer, and stopped."""
        # The best weights leave rounds behind them, too.
        return self.final_round is not None and not self.wants_best and self.last_round > self.final_round

    @property
    def wants_best(self) -> bool:
        """Whether the best weights that an evaluation found are to be in final/."""
        return mapping(self.config.get("evaluation")).get("final") == "best"

    def up_to_final(self) -> Run:
        """Return the run without the rounds that its weights in final/ have nothing of; one that does not go on as it is."""
        last = self.final_round
        if last is None or not self.goes_on:
            return self
        rounds, evaluations = ([row for row in rows if row["round"] <= last] for rows in (self.rounds, self.evaluations))
        return replace(self, rounds=rounds, evaluations=evaluations)

    @property
    def last_round(self) -> int:
        """The last finished round."""
        return max([row["round"] for row in [*self.rounds, *self.evaluations]], default=0)

    def pairs(self, count: int) -> list[Pair]:
        """Return the first pictures of the fixed set before training, and with the weights in final/ or the last there are."""
        if len(self.samples) < 2:
            return []
        first = self.samples[0]
        last = next((s for s in self.samples[1:] if s.round == self.final_round), self.samples[-1])
        known = {key: i for i, key in enumerate(first.keys)}
        chosen = [(known[key], i) for i, key in enumerate(last.keys) if key in known][:count]
        before, after = self.shots(first, [i for i, _ in chosen]), self.shots(last, [i for _, i in chosen])
        return [Pair(last.prompts[i], b, a) for (_, i), b, a in zip(chosen, before, after, strict=True)]

    @property
    def order(self) -> Metric:
        """What the best, the median and the worst pictures are ordered by."""
        found = self.extremes
        if found is None or found.ordered_by in (None, "total"):
            return self.metric
        label, penalty = str(found.ordered_by), _is_least_first(found)
        title, unit = str(found.display.get("label") or label.replace("_", " ")), str(found.display.get("unit") or "")
        return Metric(title, unit, (found.display.get("better") == "lower") != penalty, label, penalty)

    def shots(self, samples: Samples, indices: Sequence[int], metric: Metric | None = None) -> list[Shot]:
        """Return pictures with their numbers, by the run's metric where none is given."""
        metric, pictures = metric or self.metric, samples.crop(indices)
        return [
            Shot(picture, metric.of_cell(samples, i), samples.verdicts(i), samples.round)
            for i, picture in zip(indices, pictures, strict=True)
        ]


def _is_least_first(samples: Samples) -> bool:
    """Return whether the best pictures have less of the reward than the worst, as those of a penalty."""
    values = samples.rewards.get(str(samples.ordered_by))
    known = [finite(value) for value in values] if isinstance(values, list) else []
    ends = [
        (best, worst) for best, worst in zip(known[::3], known[2::3], strict=False) if best is not None and worst is not None
    ]
    return any(best < worst for best, worst in ends)
