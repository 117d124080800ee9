"""The page and the picture that show what a run did, made from the files of its directory and nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import matplotlib
import numpy as np
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from rlcm.errors import RunDirectoryError
from rlcm.serialization import write_bytes

ACCENT, INK, MUTED, LINE = "#1f5fbf", "#1d2126", "#6a727c", "#d9dde2"
PAIRS_IN_SIGHT, PAIRS, FILM = 6, 16, 8
PICTURE_BYTES = 3_000_000
NBSP = "\N{NO-BREAK SPACE}"
WEIGHTS = "final/pytorch_lora_weights.safetensors"
PHASES = {
    "sample": "sampling",
    "reward_wait": "waiting for rewards",
    "reward": "rewards",
    "update": "learning",
    "other": "other",
}
MEANINGS = {
    "diversity": "Distance between pictures of the same prompt. A fall towards 0 means that they all look alike.",
    "saturated": "Share of pixels that are nearly black or white.",
    "high_frequency": "Energy of the finest detail. A steep rise means noise; a fall, plainer pictures.",
    "kl": "Distance of the policy from the base model. It grows as the model learns, and should not run away.",
    "clip_fraction": "Share of actions whose ratio left PPO's clip range.",
    "ratio_deviation": "Mean distance from 1 of the ratio of new to old policy.",
    "grad_norm": "Length of the gradient before it is shortened.",
    "loss": "The policy-gradient loss; it need not fall.",
    "lr": "Learning rate.",
    "reward_std": "Spread of the rewards in a round.",
    "images_per_second": "Images sampled, scored and learned from.",
}
INTERNALS = ("reward_std", "clip_fraction", "ratio_deviation", "grad_norm", "loss", "lr", "images_per_second")


def write_report(run_dir: Path) -> Path:
    """Write `report.html` of a run and return its path: one page that needs no other file and no network.

    What a run that was stopped early has not written is left out, and the page says so.

    Raises:
        RunDirectoryError: if there is nothing of a run in `run_dir`, or the page cannot be written.
    """
    run = read_run(Path(run_dir))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlcm", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.jinja").render(_page(run))
    path = run.path / "report.html"
    try:
        write_bytes(path, page.encode())
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {path}: {error.strerror or error}; free some space or make the folder writable, then run "
            f"`rlcm report {run.path}`."
        ) from error
    return path


def before_after_picture(run_dir: Path, out: Path, columns: int = 6) -> Path:
    """Write a PNG, 1280 pixels wide, of the first pictures of the fixed set before and after tuning; return `out`.

    Args:
        columns: pictures in a row, 1 to 10; fewer where the run kept fewer.

    Raises:
        ValueError: if `columns` is out of range.
        RunDirectoryError: if the run has not both pictures of before and of after, or `out` cannot be written.
    """
    if not 1 <= columns <= 10:
        raise ValueError(f"columns={columns} is not in 1 .. 10.")
    run = read_run(Path(run_dir))
    pairs = run.pairs(columns)
    if not pairs:
        raise RunDirectoryError(
            f"{run.path / 'samples'} has no pictures of the same prompts from two rounds, so there is no before and after; "
            "let the run go on to its next evaluation (`rlcm train --resume`)."
        )
    try:
        _draw_rows(run, pairs).save(out, format="PNG", optimize=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {out}: {error.strerror or error}; choose another path.") from error
    return Path(out)


# ---------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Metric:
    """How the reward is shown to people."""

    label: str = "reward"
    unit: str = ""
    lower_is_better: bool = False
    reward: str | None = None
    """Label of the reward that it shows; None is their weighted sum."""

    def shown(self, value: Any) -> float | None:
        """Return a reward as people read it: a metric that should fall is the negative of its reward."""
        number = _number(value)
        return None if number is None else (-number if self.lower_is_better else number)

    def interval(self, evaluation: Mapping[str, Any]) -> tuple[float, float] | None:
        """Return mean and half-width of the 95 % interval of an evaluation."""
        found = _dict(evaluation.get("rewards")).get(self.reward) if self.reward else evaluation.get("reward")
        mean, half = _interval(found)
        shown = self.shown(mean)
        return None if shown is None else (shown, half)

    def of_round(self, row: Mapping[str, Any]) -> float | None:
        """Return the mean of a round of training."""
        return self.shown(row.get(f"rewards/{self.reward}", row.get("reward")) if self.reward else row.get("reward"))

    def of_cell(self, samples: Samples, index: int) -> float | None:
        """Return the value of one picture."""
        values = samples.rewards.get(self.reward or "total", samples.rewards.get("total"))
        return self.shown(values[index]) if isinstance(values, list) and index < len(values) else None


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

    def crop(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return the pictures of some cells."""
        height, width = self.cell
        with Image.open(self.file) as sheet:
            sheet = sheet.convert("RGB")
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
    metric: Metric = Metric()
    samples: list[Samples] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Seconds of sampling and learning."""
        found = [_number(row.get("seconds")) for row in [*self.rounds[-1:], *self.evaluations[-1:]]]
        return max((s for s in found if s is not None), default=None)

    @property
    def last_round(self) -> int:
        """The last finished round."""
        return max([row["round"] for row in [*self.rounds, *self.evaluations]], default=0)

    def pairs(self, count: int) -> list[Pair]:
        """Return the first pictures of the fixed set at the first and the last round for which there are any."""
        if len(self.samples) < 2:
            return []
        first, last = self.samples[0], self.samples[-1]
        known = {pair: i for i, pair in enumerate(zip(first.prompts, map(str, first.seeds), strict=True))}
        keys = list(zip(last.prompts, map(str, last.seeds), strict=True))
        chosen = [(known[key], i) for i, key in enumerate(keys) if key in known][:count]
        before, after = self.shots(first, [i for i, _ in chosen]), self.shots(last, [i for _, i in chosen])
        return [Pair(last.prompts[i], b, a) for (_, i), b, a in zip(chosen, before, after, strict=True)]

    def shots(self, samples: Samples, indices: Sequence[int]) -> list[Shot]:
        """Return pictures with their numbers."""
        pictures = samples.crop(indices)
        return [
            Shot(picture, self.metric.of_cell(samples, i), samples.verdicts(i), samples.round)
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
    run.metric = _metric(found.get("primary_metric"), run)
    run.samples = list(_read_samples(run))
    weights = path / WEIGHTS
    if not (run.config_text or run.rounds or run.evaluations or run.samples or weights.is_file()):
        state = "holds no run" if path.is_dir() else "does not exist"
        raise RunDirectoryError(
            f"{path} {state}: no config.yaml, metrics.jsonl, eval.json, samples "
            "or final weights are there. Give the folder that `rlcm train` printed."
        )
    run.missing[:0] = _what_is_missing(run)
    return run


def _what_is_missing(run: Run) -> Iterator[str]:
    if not (run.path / WEIGHTS).is_file():
        planned = _number(_dict(run.config.get("run")).get("rounds"))
        of = f" of {planned:.0f}" if planned else ""
        yield (
            f"The final LoRA: this page was written after round {run.last_round}{of}. If the run was stopped there, it goes on "
            "with rlcm train --resume and the path of this folder."
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
    text = _read_text(run, run.path / "config.yaml")
    try:
        return _dict(yaml.safe_load(text)), text
    except yaml.YAMLError:
        run.missing.append("Part of config.yaml: it is no valid YAML.")
        return {}, text


def _read_rounds(run: Run) -> Iterator[dict[str, Any]]:
    damaged = 0
    for line in _read_text(run, run.path / "metrics.jsonl").splitlines():
        row = _parse(line)
        if _is_row(row):
            yield row
        else:
            damaged += 1
    if damaged:
        run.missing.append(f"{damaged} line{'s' * (damaged > 1)} of metrics.jsonl that cannot be read.")


def _read_samples(run: Run) -> Iterator[Samples]:
    for file in sorted((run.path / "samples").glob("round-*.json")):
        described, picture = _dict(_parse(_read_text(run, file))), file.with_suffix(".png")
        try:
            height, width = described["cell"]
            count, columns = len(described["prompts"]), described["columns"]
            samples = Samples(
                picture,
                int(described["round"]),
                int(columns),
                (int(height), int(width)),
                [str(prompt) for prompt in described["prompts"]],
                list(described["seeds"]),
                _dict(described.get("rewards")),
                _dict(described.get("judge")),
            )
            with Image.open(picture) as sheet:
                fits = sheet.width >= min(columns, count) * width > 0 and sheet.height >= -(-count // columns) * height > 0
                sheet.verify()
            if not fits or len(samples.seeds) != count:
                raise ValueError("the grid is smaller than its description")
        except (
            OSError,
            KeyError,
            TypeError,
            ValueError,
            SyntaxError,
            OverflowError,
            ZeroDivisionError,
            Image.DecompressionBombError,
        ):
            run.missing.append(f"Pictures {picture.name}: they or their description cannot be read.")
            continue
        yield samples


def _metric(described: Any, run: Run) -> Metric:
    labels = {label: None for e in run.evaluations for label in _dict(e.get("rewards"))}
    labels |= {key.removeprefix("rewards/"): None for row in run.rounds for key in row if key.startswith("rewards/")}
    only = str(next(iter(labels))) if len(labels) == 1 else None
    if isinstance(described, dict) and described.get("label"):
        return Metric(str(described["label"]), str(described.get("unit") or ""), described.get("better") == "lower", only)
    if only:
        return Metric(only.replace("_", " "), reward=only)
    return Metric("the sum of rewards" if labels else "the reward")


def _read_text(run: Run, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        run.missing.append(f"{file.name}: it cannot be read ({getattr(error, 'strerror', None) or 'not a text file'}).")
        return ""


def _read_json(run: Run, file: Path) -> dict[str, Any]:
    text = _read_text(run, file)
    if text and not isinstance(_parse(text), dict):
        run.missing.append(f"The content of {file.name}: it is damaged.")
    return _dict(_parse(text))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and _number(value.get("round")) is not None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """Return a value if it is a number that can be shown: finite, and not beyond what charts can scale."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e100 else None


def _interval(value: Any) -> tuple[float | None, float]:
    return _number(_dict(value).get("mean")), _number(_dict(value).get("ci95")) or 0.0


# ---------------------------------------------------------------------------------------------- words


def _digits(*values: float) -> int:
    """Return how many decimals show three digits of the largest value."""
    largest = max((abs(v) for v in values), default=0.0)
    return 3 if largest == 0 else max(0, min(8, 2 - math.floor(math.log10(largest))))


def _text(value: float, digits: int | None = None) -> str:
    shown = f"{value:,.{_digits(value) if digits is None else digits}f}"
    return shown.replace("-", "−") if float(shown.replace(",", "")) else shown.removeprefix("-")


def _with_unit(value: float | None, unit: str, digits: int | None = None) -> str:
    if value is None:
        return ""
    return f"{_text(value, digits)}{NBSP}{unit}" if unit else _text(value, digits)


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NBSP}s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s".replace(" ", NBSP)
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min".replace(" ", NBSP)


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{_text(size / scale)}{NBSP}{unit}"
    return f"{size} bytes"


def _change(before: float, after: float) -> str:
    """Return a signed change: in percent where both are positive, else plain."""
    if before > 0 and after > 0:
        percent = 100 * (after - before) / before
        shown = _text(percent, 0 if abs(percent) >= 9.95 else 1)
        return f"+{shown}{NBSP}%" if percent > 0 and shown.strip("0.") else f"{shown}{NBSP}%"
    shown = _text(after - before, _digits(before, after))
    return f"+{shown}" if after > before else shown


def _headline(run: Run) -> tuple[str, str, str]:
    """Return the sentence that says what the run did, in three parts; the middle one is emphasised."""
    metric, compared = run.metric, len(run.evaluations) > 1
    subject = metric.label[:1].upper() + metric.label[1:]
    took = f" in {_duration(run.seconds)}" if run.seconds else ""
    if compared:
        first, last = metric.interval(run.evaluations[0]), metric.interval(run.evaluations[-1])
    else:
        values = [value for row in run.rounds if (value := metric.of_round(row)) is not None]
        few = max(1, min(5, len(values) // 4))
        ends = (float(np.mean(values[:few])), float(np.mean(values[-few:]))) if len(values) > 1 else None
        first, last = ((ends[0], 0.0), (ends[1], 0.0)) if ends else (None, None)
    if first is None or last is None:
        done = f"{run.last_round} rounds" if run.last_round else "no finished round yet"
        return "This run has ", done, f"{took}, and no two measurements to compare."
    (before, wide), (after, narrow) = first, last
    digits = _digits(before, after)
    numbers = f" ({_text(before, digits)} → {_with_unit(after, metric.unit, digits)})"
    if _text(before, digits) == _text(after, digits) or abs(after - before) < math.hypot(wide, narrow) / 2:
        return f"{subject} ", "hardly changed", f"{numbers}{took}{_judged(run)}."
    verb, size = ("rose", "+") if after > before else ("fell", "−")
    change = _change(before, after).removeprefix(size)
    amount = change if change.endswith("%") else f"by {_with_unit(abs(after - before), metric.unit, digits)}"
    worse = "" if (after < before) == metric.lower_is_better else ", the wrong way"
    where = "" if compared else " over the training pictures"
    return f"{subject} ", f"{verb} {amount}", f"{numbers}{took}{where}{worse}{_judged(run)}."


def _judged(run: Run) -> str:
    if len(run.evaluations) < 2:
        return ""
    before, after = (_dict(run.evaluations[i].get("judge")) for i in (0, -1))
    question = next(iter(after), "")
    (old, wide), (new, narrow) = _interval(before.get(question)), _interval(after.get(question))
    if old is None or new is None:
        return ""
    still = "still recognises" if new >= old - max(0.02, math.hypot(wide, narrow)) else "now recognises only"
    return f"; the judge {still} {100 * new:.1f}{NBSP}% of the {question}s ({100 * old:.1f}{NBSP}% before)"


def _summary(run: Run) -> list[str]:
    """Return what was run, in a few words each."""
    config, last = run.config, (run.rounds or [{}])[-1]
    model, sampler, lora = (_dict(config.get(key)) for key in ("model", "sampler", "lora"))
    path = str(model.get("path", ""))
    calls = _number((run.evaluations or [{}])[-1].get("steps")) or _number(sampler.get("steps"))
    facts = [
        {"builtin": "the built-in model", "builtin-teacher": "the built-in teacher"}.get(path, path),
        f"{calls:.0f} sampling steps" if calls else "",
        f"LoRA of rank {lora['rank']}" if lora.get("rank") else "",
        f"{run.last_round} rounds" if run.last_round else "",
        f"{queries:,.0f} images scored" if (queries := _number(last.get("reward_queries"))) else "",
    ]
    return [fact for fact in facts if fact]


def _comparison(run: Run) -> list[dict[str, str]]:
    """Return the rows of the table of before and after."""
    if len(run.evaluations) < 2:
        return []
    first, last = run.evaluations[0], run.evaluations[-1]
    rows = []

    def add(name: str, before: Any, after: Any, *, unit: str = "", percent: bool = False, meaning: str = "") -> None:
        (old, wide), (new, narrow) = _interval(before), _interval(after)
        if old is None or new is None:
            return
        digits = 1 if percent else _digits(old, new)
        scale, unit = (100.0, "%") if percent else (1.0, unit)
        shown = [
            _text(mean * scale, digits) + (f" ± {_text(half * scale, digits)}" if half else "") + (f" {unit}" if unit else "")
            for mean, half in ((old, wide), (new, narrow))
        ]
        points = 100 * (new - old)
        change = f"{'+' if points > 0 else ''}{_text(points, 1)} points" if percent else _change(old, new)
        rows.append({"name": name, "before": shown[0], "after": shown[1], "change": change, "meaning": meaning})

    metric, rewards = run.metric, _dict(last.get("rewards"))
    ends = [metric.interval(e) for e in (first, last)]
    shown = [{"mean": end[0], "ci95": end[1]} if end else {} for end in ends]
    direction = "lower" if metric.lower_is_better else "higher"
    add(metric.label, *shown, unit=metric.unit, meaning=f"What was rewarded; {direction} is better.")
    for label in rewards:
        if label != metric.reward:
            add(str(label), _dict(first.get("rewards")).get(label), rewards[label], meaning="One of the rewards.")
    for question, after in _dict(last.get("judge")).items():
        before = _dict(first.get("judge")).get(question)
        add(f"judge: {question} recognised", before, after, percent=True, meaning=_meaning(f"judge/{question}"))
    for key, after in _dict(last.get("guard")).items():
        before = _dict(first.get("guard")).get(key)
        add(key.replace("_", " "), {"mean": before}, {"mean": after}, meaning=MEANINGS.get(key, ""))
    speed = [{"mean": e.get("images_per_second")} for e in (first, last)]
    add("images per second", *speed, meaning="Of sampling and decoding.")
    return rows


def _meaning(key: str) -> str:
    if key.startswith("judge/"):
        return f"Share of pictures in which a classifier that no reward uses sees the prompt's {key.removeprefix('judge/')}."
    return MEANINGS.get(key, "")


# ---------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True, slots=True)
class Line:
    """Points of a chart."""

    label: str
    x: list[float]
    y: list[float]
    error: list[float] | None = None
    measured: bool = False
    """Points with a line through them, in the accent colour, rather than a thin grey line."""


def _chart(
    lines: Sequence[Line], x_label: str, y_label: str, *, size: tuple[float, float], name: str, floor: float | None = None
) -> Markup:
    """Return a chart as an SVG element; its ordinate starts at `floor`, or where the values do."""
    style: Any = {
        "text.usetex": False,
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": 10, "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED, "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": "#eceef1", "axes.axisbelow": True, "axes.formatter.useoffset": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            if line.measured:
                axes.errorbar(
                    line.x, line.y, yerr=line.error, color=ACCENT, linewidth=2,
                    marker="o", markersize=5, markeredgecolor="white", capsize=0, elinewidth=1.2, label=line.label, zorder=3,
                )  # fmt: skip
            else:
                colour = "#8a939e" if len(lines) > 1 else ACCENT
                axes.plot(*_thinned(line.x, line.y), color=colour, linewidth=1.2, label=line.label)
        if floor is not None:
            highest = max(max(y + e for y, e in zip(line.y, line.error or [0.0] * len(line.y), strict=True)) for line in lines)
            axes.set_ylim(floor, floor + 1.08 * (highest - floor) if highest > floor else floor + 1)
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.03)
        axes.tick_params(length=3)
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Groups are numbered from 1 in every figure, and an id may stand only once on a page; the kept ones are salted hashes.
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    return Markup(re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1))


def _thinned(x: Sequence[float], y: Sequence[float], most: int = 400) -> tuple[list[float], list[float]]:
    """Return at most `most` points: means of neighbours, so that a long run makes no large page."""
    if len(x) <= most:
        return list(x), list(y)
    parts = [np.array_split(np.asarray(values), most) for values in (x, y)]
    xs, ys = ([float(part.mean()) for part in column] for column in parts)
    return xs, ys


def _curves(run: Run) -> list[dict[str, Any]]:
    """Return the learning curve, over time and over scored images."""
    metric = run.metric
    label = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    arrow = "lower is better" if metric.lower_is_better else "higher is better"
    queries = {row["round"]: row.get("reward_queries") for row in run.rounds} | {0: 0}
    minutes = (run.seconds or 0) > 180
    charts = []
    for key, x_label in (
        ("seconds", f"{'minutes' if minutes else 'seconds'} of sampling and learning"),
        ("reward_queries", "images scored"),
    ):
        scale = 60.0 if minutes and key == "seconds" else 1.0
        training = [(_number(row.get(key)), metric.of_round(row)) for row in run.rounds]
        measured = [
            (_number(e.get("seconds") if key == "seconds" else queries.get(e["round"])), metric.interval(e))
            for e in run.evaluations
        ]
        points = [(x / scale, y) for x, y in training if x is not None and y is not None]
        checks = [(x / scale, *found) for x, found in measured if x is not None and found is not None]
        lines = []
        if len(points) > 1:
            lines.append(Line("rounds of training", [x for x, _ in points], [y for _, y in points]))
        if checks:
            xs, ys, errors = (list(column) for column in zip(*checks, strict=True))
            lines.append(Line("fixed prompts and seeds, with 95 % interval", xs, ys, errors, measured=True))
        if lines and (len(points) > 1 or len(checks) > 1):
            svg = _chart(lines, x_label, f"{label}, {arrow}", size=(5.2, 3.4), name=key)
            charts.append({"title": f"Against {'time' if key == 'seconds' else 'reward queries'}", "svg": svg})
    return charts


def _guards(run: Run) -> list[dict[str, Any]]:
    """Return small charts of what should not change while the reward does."""
    charts = []
    for question in {q: None for e in run.evaluations for q in _dict(e.get("judge"))}:
        found = [(e["round"], *_interval(_dict(e.get("judge")).get(question))) for e in run.evaluations]
        points = [(x, 100 * y, 100 * half) for x, y, half in found if y is not None]
        charts.append((f"Judge: {question} recognised", points, "%", f"judge/{question}"))
    for key in {k: None for e in run.evaluations for k in _dict(e.get("guard"))}:
        found = [(e["round"], _number(_dict(e.get("guard")).get(key)), 0.0) for e in run.evaluations]
        charts.append((key.replace("_", " ").capitalize(), [(x, y, h) for x, y, h in found if y is not None], "", key))
    drawn = []
    for title, points, unit, key in charts:
        if len(points) > 1:
            line = Line("", [p[0] for p in points], [p[1] for p in points], [p[2] for p in points], measured=True)
            # Guards start at 0, so that a small change looks small; shares near 100 % would then be all alike.
            floor = 80.0 if unit == "%" and min(points, key=lambda p: p[1] - p[2])[1] > 85 else 0.0
            svg = _chart([line], "round", unit, size=SMALL, name=key, floor=floor)
            drawn.append({"title": title, "meaning": _meaning(key), "svg": svg})
    return drawn + _round_charts(run, ("kl",))


SMALL = (3.9, 2.3)


def _round_charts(run: Run, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return small charts of columns of metrics.jsonl."""
    drawn = []
    for key in keys:
        points = [(row["round"], value) for row in run.rounds if (value := _number(row.get(key))) is not None]
        if len(points) > 1:
            line = Line("", [x for x, _ in points], [y for _, y in points])
            title = {"kl": "KL divergence", "lr": "Learning rate"}.get(key, key.replace("_", " ").capitalize())
            svg = _chart([line], "round", "", size=SMALL, name=key)
            drawn.append({"title": title, "meaning": _meaning(key), "svg": svg})
    return drawn


def _timings(run: Run) -> list[dict[str, Any]]:
    """Return the phases of a round with their seconds over the run and their share."""
    keys = list(dict.fromkeys(key for row in run.rounds for key in row if key.startswith("time/")))
    if "time/reward_wait" in keys:
        # Scoring runs beside sampling: only the wait for it takes time of its own.
        keys = [key for key in keys if key != "time/reward"]
    order = [f"time/{phase}" for phase in PHASES]
    keys.sort(key=lambda key: order.index(key) if key in order else len(order))
    sums = {key: sum(_number(row.get(key)) or 0.0 for row in run.rounds) for key in keys}
    total = sum(sums.values())
    return [
        {
            "name": PHASES.get(key.removeprefix("time/"), key.removeprefix("time/").replace("_", " ")),
            "seconds": _duration(seconds),
            "share": 100 * seconds / total,
            "shade": max(0.22, 1 - 0.26 * place),
        }
        for place, (key, seconds) in enumerate((k, s) for k, s in sums.items() if s > 0)
    ]


def _film(run: Run) -> tuple[str, list[Shot]]:
    """Return the prompt and the pictures, through the rounds, of the cell whose reward changed by the median."""
    if len(run.samples) < 2:
        return "", []
    first, last = run.samples[0], run.samples[-1]
    same = [i for i, (a, b) in enumerate(zip(first.prompts, last.prompts, strict=False)) if a == b]
    changes = [
        (after - before, i)
        for i in same
        if (before := run.metric.of_cell(first, i)) is not None and (after := run.metric.of_cell(last, i)) is not None
    ]
    if not same:
        return "", []
    index = sorted(changes)[len(changes) // 2][1] if changes else same[0]
    usable = [s for s in run.samples if index < len(s.prompts) and s.prompts[index] == last.prompts[index]]
    chosen = sorted({round(i) for i in np.linspace(0, len(usable) - 1, FILM).tolist()})
    return last.prompts[index], [shot for i in chosen for shot in run.shots(usable[i], [index])]


def _data_uris(pictures: Sequence[Image.Image]) -> list[str]:
    """Return pictures as data URIs: small ones as they are, large ones as small as they must be to make no large page."""
    if all(max(picture.size) <= 128 for picture in pictures):
        encoded = [_encode(picture, 128, None) for picture in pictures]
        if sum(map(len, encoded)) <= PICTURE_BYTES:
            return encoded
    for side, quality in ((384, 90), (320, 85), (224, 80), (128, 70)):
        encoded = [_encode(picture, side, quality) for picture in pictures]
        if sum(map(len, encoded)) <= PICTURE_BYTES:
            break
    return encoded


def _encode(picture: Image.Image, side: int, quality: int | None) -> str:
    buffer = io.BytesIO()
    if max(picture.size) > side:
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if quality is None:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=quality)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---------------------------------------------------------------------------------------------- the page


def _page(run: Run) -> dict[str, Any]:
    """Return all that the template prints."""
    pairs, (film_prompt, film) = run.pairs(PAIRS), _film(run)
    alone = run.shots(run.samples[0], range(min(PAIRS, len(run.samples[0].prompts)))) if run.samples and not pairs else []
    shots = [shot for pair in pairs for shot in (pair.before, pair.after)] + film + alone
    pictures = iter(_data_uris([shot.picture for shot in shots]))
    digits = _digits(*(shot.value for shot in shots if shot.value is not None))

    def shown(shot: Shot) -> dict[str, Any]:
        value = _with_unit(shot.value, run.metric.unit, digits)
        return {"uri": next(pictures), "value": value, "verdicts": shot.verdicts, "round": shot.round}

    first, last = (run.evaluations[0], run.evaluations[-1]) if run.evaluations else ({}, {})
    return {
        "name": str(run.config.get("name") or run.path.resolve().name),
        "headline": _headline(run),
        "summary": _summary(run),
        "metric": run.metric,
        "pairs": [{"prompt": p.prompt, "before": shown(p.before), "after": shown(p.after)} for p in pairs],
        "in_sight": PAIRS_IN_SIGHT,
        "film": [shown(shot) for shot in film],
        "film_prompt": film_prompt,
        "alone": [shown(shot) | {"prompt": prompt} for shot, prompt in zip(alone, run.samples[0].prompts, strict=False)]
        if alone
        else [],
        "rounds_shown": (run.samples[0].round, run.samples[-1].round) if run.samples else (0, 0),
        "comparison": _comparison(run),
        "evaluated": {"images": last.get("images"), "first": first.get("round"), "last": last.get("round")},
        "curves": _curves(run),
        "guards": _guards(run),
        "internals": _round_charts(run, INTERNALS),
        "timings": _timings(run),
        "total_time": _duration(run.seconds) if run.seconds else "",
        "reward_work": _reward_work(run),
        "usage": _usage(run),
        "config": run.config_text,
        "files": _files(run.path),
        "missing": run.missing,
        "colours": {"accent": ACCENT, "ink": INK, "muted": MUTED, "line": LINE},
    }


def _reward_work(run: Run) -> str:
    """Return the seconds that rewards took beside sampling, where that is known."""
    beside = sum(_number(row.get("time/reward")) or 0.0 for row in run.rounds if "time/reward_wait" in row)
    return _duration(beside) if beside else ""


def _usage(run: Run) -> str:
    """Return the first piece of Python in the model card."""
    found = re.search(r"```python\n(.*?)```", _read_text(run, run.path / "final" / "README.md"), flags=re.DOTALL)
    return found[1].strip() if found else ""


def _files(path: Path) -> list[dict[str, str]]:
    """Return the files of the run, folders of many as one line, with links relative to the page."""
    rows = []
    about = {
        "config.yaml": "the resolved configuration",
        "metrics.jsonl": "one line a round",
        "eval.json": "the evaluations on fixed prompts and seeds",
        "samples/": "the pictures of the fixed prompts, lossless",
        WEIGHTS: "the tuned LoRA",
        "final/README.md": "its model card",
    }
    for entry in sorted(path.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        if entry.name.startswith(".") or entry.name == "report.html":
            continue
        if entry.is_dir() and entry.name != "final":
            inside = [file for file in entry.rglob("*") if file.is_file()]
            name, size = f"{entry.name}/", sum(file.stat().st_size for file in inside)
            text = about.get(name, "a state to go on from" if name.startswith("checkpoint-") else "")
            note = f"{len(inside)} files" + (f": {text}" if text else "")
            rows.append({"name": name, "href": quote(name), "size": _bytes(size), "about": note})
            continue
        for file in sorted(entry.iterdir()) if entry.is_dir() else [entry]:
            name = file.relative_to(path).as_posix()
            text = about.get(name, "metrics for TensorBoard" if name.startswith("events.out.tfevents") else "")
            rows.append({"name": name, "href": quote(name), "size": _bytes(file.stat().st_size), "about": text})
    return rows


# ---------------------------------------------------------------------------------------------- the picture


def _draw_rows(run: Run, pairs: Sequence[Pair]) -> Image.Image:
    """Return the picture of two rows: caption, prompts, pictures with their numbers."""
    width, margin, gutter, gap = 1280, 36, 104, 14
    side = min(240, (width - 2 * margin - gutter - gap * (len(pairs) - 1)) // len(pairs))
    source = pairs[0].before.picture
    height = round(side * source.height / source.width)
    small = _font(15)
    prompts = [_wrapped(pair.prompt, small, side) for pair in pairs]
    top, label_height, between = 122 + 20 * max(map(len, prompts)), 40, 14
    canvas = Image.new("RGB", (width, top + 2 * (height + label_height) + between + 20), "white")
    draw = ImageDraw.Draw(canvas)
    bold, plain = _font(19, True), _font(19)

    start, emphasis, rest = _headline(run)
    x = float(margin)
    # The sentence up to its means; the judge's part of it goes into the line below.
    means, _, judged = rest.rstrip(".").partition("; ")
    size = next(
        s for s in range(28, 11, -1) if _font(s, True).getlength(start + emphasis + means) <= width - 2 * margin or s == 12
    )
    title = _font(size, True)
    for text, colour in ((start, INK), (emphasis, ACCENT), (means, INK)):
        draw.text((x, 30), text, font=title, fill=colour)
        x += title.getlength(text)
    line = "Same prompts, same seeds" + (f"; {judged}" if judged else "") + "."
    draw.text((margin, 72), _cut(line, plain, width - 2 * margin), font=plain, fill=MUTED)

    digits = _digits(*(s.value for p in pairs for s in (p.before, p.after) if s.value is not None))
    for row, name in enumerate(("before", "after")):
        y = top + row * (height + label_height + between)
        after = name == "after"
        draw.text((margin, y + height / 2), name, font=_font(22, True), fill=ACCENT if after else INK, anchor="lm")
        draw.text((margin, y + height / 2 + 24), f"round {getattr(pairs[0], name).round}", font=small, fill=MUTED, anchor="lm")
        for column, pair in enumerate(pairs):
            shot: Shot = getattr(pair, name)
            x = margin + gutter + column * (side + gap)
            _paste(canvas, shot.picture, (round(x), y), (side, height))
            value = _with_unit(shot.value, run.metric.unit, digits)
            place = (x + side / 2, y + height + 8)
            draw.text(place, value, font=bold if after else plain, fill=ACCENT if after else INK, anchor="ma")
            if not after:
                for place_up, text in enumerate(reversed(prompts[column])):
                    draw.text((x + side / 2, top - 11 - 20 * place_up), text, font=small, fill=MUTED, anchor="ms")
    return canvas


def _paste(canvas: Image.Image, picture: Image.Image, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Paste a picture, scaled to `size`, with rounded corners."""
    scale, box = 4, (0, 0, 4 * size[0] - 1, 4 * size[1] - 1)  # drawn large and made smaller, for smooth corners
    shape, rim = (Image.new("L", (scale * size[0], scale * size[1]), 0) for _ in range(2))
    ImageDraw.Draw(shape).rounded_rectangle(box, radius=10 * scale, fill=255)
    # A faint rim, so that white pictures end somewhere.
    ImageDraw.Draw(rim).rounded_rectangle(box, radius=10 * scale, outline=40, width=scale)
    canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), corner, shape.resize(size, Image.Resampling.LANCZOS))
    canvas.paste("black", (*corner, corner[0] + size[0], corner[1] + size[1]), rim.resize(size, Image.Resampling.LANCZOS))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Return a text in at most two lines of `width` pixels."""
    first, *rest = text.split() or [""]
    while rest and font.getlength(f"{first} {rest[0]}") <= width:
        first = f"{first} {rest.pop(0)}"
    return [_cut(line, font, width) for line in (first, " ".join(rest)) if line]


def _cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return a text, shortened with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
