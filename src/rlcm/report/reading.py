"""What can be read of a run directory: a run that was stopped early or damaged gives what is there, and says what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from rlcm.errors import RunDirectoryError

WEIGHTS = "final/pytorch_lora_weights.safetensors"
STUDY = "evaluation/eval.json"
"""What `rlcm eval` leaves in a run."""


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


@dataclass(slots=True)
class Samples:
    """A grid of pictures of the fixed prompts and seeds, taken at one round."""

    file: Path
    round: int
    columns: int
    cell: tuple[int, int]
    prompts: list[str]
    seeds: list[Any]
    rewards: dict[str, Any]
    judge: dict[str, Any]
    ordered_by: str | None = None
    """Of the best, median and worst pictures: the label of the reward that says so, `total` for the sum; None: not known."""
    display: dict[str, Any] = field(default_factory=dict)
    """How that reward is shown to people, where it says so."""

    def crop(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return the pictures of some cells."""
        height, width = self.cell
        with Image.open(self.file) as picture:
            sheet = picture.convert("RGB")
        corners = [(i % self.columns * width, i // self.columns * height) for i in indices]
        return [sheet.crop((x, y, x + width, y + height)) for x, y in corners]

    def verdicts(self, index: int) -> list[tuple[str, bool]]:
        """Return what the judge said of a picture, by question."""
        return [(str(q), bool(v[index])) for q, v in self.judge.items() if isinstance(v, list) and index < len(v)]


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture with its number."""

    picture: Image.Image
    value: float | None
    verdicts: list[tuple[str, bool]]
    round: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt and seed before and after."""

    prompt: str
    before: Shot
    after: Shot


@dataclass(slots=True)
class Run:
    """What could be read of a run directory."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    final_round: int | None = None
    """The round whose weights are in final/; None before there are any."""
    metric: Metric = Metric()
    samples: list[Samples] = field(default_factory=list)
    extremes: Samples | None = None
    """The best, the median and the worst picture of every prompt, three a row."""
    study: dict[str, Any] = field(default_factory=dict)
    """What `rlcm eval` found."""
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
        chosen = mapping(self.config.get("evaluation")).get("final") == "best"  # which leaves rounds behind it, too
        return self.final_round is not None and not chosen and self.last_round > self.final_round

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
        known = {pair: i for i, pair in enumerate(zip(first.prompts, map(str, first.seeds), strict=True))}
        keys = list(zip(last.prompts, map(str, last.seeds), strict=True))
        chosen = [(known[key], i) for i, key in enumerate(keys) if key in known][:count]
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


def read_run(path: Path) -> Run:
    """Return what a run directory holds.

    Raises:
        RunDirectoryError: if that is nothing.
    """
    run = Run(path)
    run.config, run.config_text = _read_config(run)
    run.rounds = list(_read_rounds(run))
    found = _read_json(run, path / "eval.json")
    listed = found.get("evaluations")
    run.evaluations = [e for e in listed if _is_row(e)] if isinstance(listed, list) else []
    run.final_round = _round(found.get("final_round"))
    run.metric = _metric(found.get("primary_metric"), run)
    run.samples = list(_read_samples(run, sorted((path / "samples").glob("round-*.json"))))
    run.study = _read_study(run)
    best_and_worst = [path / "evaluation/pictures/prompts.json"] if run.study else []
    best_and_worst.append(path / "samples/prompts.json")
    run.extremes = next(_read_samples(run, [file for file in best_and_worst if file.is_file()]), None)
    weights = path / WEIGHTS
    if not (run.config_text or run.rounds or run.evaluations or run.samples or weights.is_file()):
        state = "holds no run" if path.is_dir() else "does not exist"
        raise RunDirectoryError(
            f"{path} {state}: no config.yaml, metrics.jsonl, eval.json, samples "
            "or final weights are there. Give the folder that `rlcm train` printed."
        )
    run.missing[:0] = _what_is_missing(run)
    return run


def final_round(path: Path) -> int | None:
    """Return the round whose weights are in the final/ of a run directory; None where that is not known."""
    return _round(_read_json(Run(path), path / "eval.json").get("final_round"))


def _round(value: Any) -> int | None:
    number = finite(value)
    return None if number is None else int(number)


def _read_study(run: Run) -> dict[str, Any]:
    """Return what `rlcm eval` found of the weights in final/."""
    study = _read_json(run, run.path / STUDY)
    looked_at = _round(study.get("round"))
    if looked_at is None or run.final_round is None or looked_at == run.final_round:
        return _with_weights(study, run.config)
    run.missing.append(
        f"The study of steps and prompts: {STUDY} is of the weights of round {looked_at}, and final/ has those of round "
        f"{run.final_round}. rlcm eval with the path of this folder looks at these."
    )
    return {}


def _with_weights(study: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study whose rewards have the weights that the run gives them, where the study does not say them."""
    rewards = study.get("rewards")
    if not isinstance(rewards, list):
        return study
    weighted = [
        {"weight": weight_of(config, str(entry.get("label")))} | entry if entry.get("trained") is not False else entry
        for entry in map(mapping, rewards)
    ]
    return study | {"rewards": weighted}


def _what_is_missing(run: Run) -> Iterator[str]:
    if not (run.path / WEIGHTS).is_file():
        planned = finite(mapping(run.config.get("run")).get("rounds"))
        of = f" of {planned:.0f}" if planned else ""
        yield (
            f"The final LoRA: this page was written after round {run.last_round}{of}. If the run was stopped there, it goes on "
            "with rlcm train --resume and the path of this folder."
        )
    elif run.goes_on:
        yield (
            f"The LoRA of round {run.last_round}: final/ has that of round {run.final_round}, and before and after are told of it. The "
            "run has not ended; it goes on with rlcm train --resume and the path of this folder, and "
            f"run.rounds={run.last_round} behind that ends it there."
        )
    if not run.evaluations:
        yield "Evaluations (eval.json): the numbers on fixed prompts and seeds, before and after."
    elif len(run.evaluations) == 1:
        yield "An evaluation after the base model's (eval.json), so there is no before and after in numbers."
    if not run.samples:
        yield "Pictures (samples/)."
    elif len(run.samples) == 1:
        yield f"Pictures of a second round (samples/): those of round {run.samples[0].round} are the only ones."
    if not run.rounds:
        yield "The rounds' metrics (metrics.jsonl): no learning curve, no timings."
    if not run.config_text:
        yield "The configuration (config.yaml)."


def _read_config(run: Run) -> tuple[dict[str, Any], str]:
    text = read_text(run, run.path / "config.yaml")
    try:
        return mapping(yaml.safe_load(text)), text
    except yaml.YAMLError:
        run.missing.append("Part of config.yaml: it is no valid YAML.")
        return {}, text


def _read_rounds(run: Run) -> Iterator[dict[str, Any]]:
    damaged = 0
    for line in read_text(run, run.path / "metrics.jsonl").splitlines():
        row = _parse(line)
        if _is_row(row):
            yield row
        else:
            damaged += 1
    if damaged:
        run.missing.append(f"{damaged} line{'s' * (damaged > 1)} of metrics.jsonl that cannot be read.")


def _read_samples(run: Run, files: Sequence[Path]) -> Iterator[Samples]:
    for file in files:
        described, picture = mapping(_parse(read_text(run, file))), file.with_suffix(".png")
        try:
            height, width = described["cell"]
            count, columns = len(described["prompts"]), described["columns"]
            samples = Samples(
                file=picture,
                round=int(described["round"]),
                columns=int(columns),
                cell=(int(height), int(width)),
                prompts=[str(prompt) for prompt in described["prompts"]],
                seeds=list(described["seeds"]),
                rewards=mapping(described.get("rewards")),
                judge=mapping(described.get("judge")),
                ordered_by=described.get("ordered_by"),
                display=mapping(described.get("display")),
            )
            with Image.open(picture) as sheet:
                fits = sheet.width >= min(columns, count) * width > 0 and sheet.height >= -(-count // columns) * height > 0
                sheet.verify()
            if not fits or len(samples.seeds) != count:
                raise ValueError("the grid is smaller than its description")
        except (OSError, LookupError, TypeError, ValueError, ArithmeticError, SyntaxError, Image.DecompressionBombError):
            run.missing.append(f"Pictures {picture.name}: they or their description cannot be read.")
            continue
        yield samples


def _metric(described: Any, run: Run) -> Metric:
    labels = {label: None for e in run.evaluations for label in mapping(e.get("rewards"))}
    labels |= {key.removeprefix("rewards/"): None for row in run.rounds for key in row if key.startswith("rewards/")}
    only = str(next(iter(labels))) if len(labels) == 1 else None
    weight = None if only is None else weight_of(run.config, only)
    if isinstance(described, dict) and described.get("label"):
        # What is shown in place of a weighted sum is the reward itself, which a negative weight turns round.
        penalty = only is not None and (described.get("penalty") is True or (weight or 0.0) < 0)
        return Metric(
            str(described["label"]), str(described.get("unit") or ""), described.get("better") == "lower", only, penalty
        )
    if only:
        penalty = (weight or 0.0) < 0
        return Metric(only.replace("_", " "), "", penalty, only, penalty)
    return Metric("the sum of rewards" if labels else "the reward")


def weight_of(config: Mapping[str, Any], label: str) -> float | None:
    """Return what a reward, or a component of it, counts in the sum of a run; None where the run is not trained on it."""
    rewards = config.get("rewards")
    for entry in map(mapping, rewards if isinstance(rewards, list) else []):
        if (entry.get("label") or entry.get("name")) == label.partition("/")[0]:
            return finite(entry.get("weight", 1.0))
    return None


def _is_least_first(samples: Samples) -> bool:
    """Return whether the best pictures have less of the reward than the worst, as those of a penalty."""
    values = samples.rewards.get(str(samples.ordered_by))
    known = [finite(value) for value in values] if isinstance(values, list) else []
    ends = [
        (best, worst) for best, worst in zip(known[::3], known[2::3], strict=False) if best is not None and worst is not None
    ]
    return any(best < worst for best, worst in ends)


def read_text(run: Run, file: Path) -> str:
    """Return a text file; nothing where there is none, or none that can be read, which is added to what is missing."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        run.missing.append(f"{file.name}: it cannot be read ({getattr(error, 'strerror', None) or 'not a text file'}).")
        return ""


def _read_json(run: Run, file: Path) -> dict[str, Any]:
    text = read_text(run, file)
    value = _parse(text)
    if text and not isinstance(value, dict):
        run.missing.append(f"The content of {file.name}: it is damaged.")
    return mapping(value)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and finite(value.get("round")) is not None


def mapping(value: Any) -> dict[str, Any]:
    """Return a value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def finite(value: Any) -> float | None:
    """Return a value if it is a number that can be shown: finite, and not beyond what charts can scale."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e100 else None


def mean_and_half(value: Any) -> tuple[float | None, float]:
    """Return mean and half-width of a measurement; no mean where there is no number."""
    return finite(mapping(value).get("mean")), finite(mapping(value).get("ci95")) or 0.0
