"""What can be read of a run directory: a run that was stopped early or damaged gives what is there, and says what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rlcm.addresses import without_secrets
from rlcm.errors import RunDirectoryError, UnreadableFileError
from rlcm.report.metric import Metric, weight_of
from rlcm.report.missing import what_is_missing
from rlcm.report.run import DEPENDS_ON, STUDY, WEIGHTS, Run
from rlcm.report.samples import Samples
from rlcm.report.values import alteration, finite, mapping
from rlcm.runs.files import MOST, MOST_YAML, is_there, open_file, parse_yaml, printable, why_no_file
from rlcm.runs.files import read_json as read_json_file
from rlcm.runs.files import read_text as read_text_file
from rlcm.runs.metrics import LAST_ROUND, read_metrics
from rlcm.runs.whole_config import is_cut


def read_run(path: Path) -> Run:
    """Return what a run directory holds.

    Raises:
        RunDirectoryError: if that is nothing.
    """
    run = Run(path)
    run.config, run.config_text = _read_config(run)
    run.rounds = _read_rounds(run)
    found = _read_json(run, path / "eval.json")
    listed = found.get("evaluations")
    run.evaluations = (
        [e | {"round": number} for e in listed if (number := _round(mapping(e).get("round"))) is not None]
        if isinstance(listed, list)
        else []
    )
    run.final_round = _round(found.get("final_round"))
    run.metric = _metric(found.get("primary_metric"), run)
    run.samples = list(_read_samples(run, _descriptions(run)))
    altered = _read_json(run, path / DEPENDS_ON).get("altered")
    run.altered = [alteration(entry) for entry in map(mapping, altered if isinstance(altered, list) else []) if entry]
    run.study = _read_study(run)
    best_and_worst = [path / "evaluation/pictures/prompts.json"] if run.study else []
    best_and_worst.append(path / "samples/prompts.json")
    run.extremes = next(_read_samples(run, [file for file in best_and_worst if os.path.isfile(file)]), None)
    weights = path / WEIGHTS
    if not (run.config_text or run.rounds or run.evaluations or run.samples or os.path.isfile(weights)):
        state = "holds no run" if os.path.isdir(path) else "does not exist"
        raise RunDirectoryError(
            f"{printable(path)} {state}: no config.yaml, metrics.jsonl, eval.json, samples "
            f"or final weights are there{_but(run.missing)}. Give the folder that `rlcm train` printed."
        )
    run.missing[:0] = what_is_missing(run)
    return run


def _but(missing: Sequence[str]) -> str:
    return f" ({' '.join(missing)})" if missing else ""


def final_round(path: Path) -> int | None:
    """Return the round whose weights are in the final/ of a run directory; None where that is not known."""
    return _round(_read_json(Run(path), path / "eval.json").get("final_round"))


def _round(value: Any) -> int | None:
    number = finite(value)
    return None if number is None or not 0 <= number < LAST_ROUND else int(number)


def _whole(value: Any) -> int:
    number = _round(value)
    if number is None:
        raise ValueError(f"{value!r} is no whole number from 0")
    return number


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


def _read_config(run: Run) -> tuple[dict[str, Any], str]:
    known = len(run.missing)
    text = read_text(run, run.path / "config.yaml", MOST_YAML)
    values = {}
    try:
        values = mapping(parse_yaml(text))
        if len(run.missing) > known:
            run.config_damaged = "it cannot be read"
        elif os.path.isfile(run.path / "config.yaml") and is_cut(text, values):
            run.config_damaged = "it was cut short, or lines were taken out of it"
    except ValueError:
        run.config_damaged = "it is no valid YAML"
    if run.config_damaged:
        run.missing.append(f"Part of config.yaml: {run.config_damaged}. What this page says of settings may be wrong.")
    return values, without_secrets(text)


def _read_rounds(run: Run) -> list[dict[str, Any]]:
    try:
        found, left_out = read_metrics(run.path / "metrics.jsonl")
    except UnreadableFileError as error:
        run.missing.append(f"metrics.jsonl: it cannot be read ({error.reason}).")
        return []
    run.missing += [f"{text}." for text in left_out]
    return found


def _descriptions(run: Run) -> list[Path]:
    """Return the descriptions of the grids of pictures, in the order of their rounds."""
    folder = run.path / "samples"
    if is_there(folder) and not os.path.isdir(folder):
        run.missing.append(f"samples: it cannot be read ({why_no_file(folder) or 'it is no folder'}).")
        return []
    try:
        return sorted(folder.glob("round-*.json"))
    except OSError as error:
        run.missing.append(f"samples: it cannot be read ({error.strerror or error}).")
        return []


def _read_samples(run: Run, files: Sequence[Path]) -> Iterator[Samples]:
    for file in files:
        described, picture = _read_json(run, file), file.with_suffix(".png")
        try:
            height, width = described["cell"]
            count, columns = len(described["prompts"]), described["columns"]
            samples = Samples(
                file=picture,
                round=_whole(described["round"]),
                columns=_whole(columns),
                cell=(int(height), int(width)),
                prompts=[str(prompt) for prompt in described["prompts"]],
                seeds=list(described["seeds"]),
                rewards=mapping(described.get("rewards")),
                judge=mapping(described.get("judge")),
                ordered_by=described.get("ordered_by"),
                display=mapping(described.get("display")),
            )
            with open_file(picture) as opened, Image.open(opened, formats=("PNG",)) as sheet:
                fits = sheet.width >= min(columns, count) * width > 0 and sheet.height >= -(-count // columns) * height > 0
                sheet.verify()
            if not fits or len(samples.seeds) != count:
                raise ValueError("the grid is smaller than its description")
        except (
            OSError,
            UnreadableFileError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            SyntaxError,
            Image.DecompressionBombError,
        ):
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
        unit, question = str(described.get("unit") or ""), described.get("question")
        less = described.get("better") == "lower"
        return Metric(str(described["label"]), unit, less, only, penalty, None if question is None else str(question))
    if only:
        penalty = (weight or 0.0) < 0
        return Metric(only.replace("_", " "), "", penalty, only, penalty)
    return Metric("the sum of rewards" if labels else "the reward")


def read_text(run: Run, file: Path, most: int = MOST) -> str:
    """Return a text file; nothing where there is none, or none that can be read, which is added to what is missing."""
    if not is_there(file):
        return ""
    try:
        return read_text_file(file, most)
    except UnreadableFileError as error:
        run.missing.append(f"{file.name}: it cannot be read ({error.reason}).")
        return ""


def _read_json(run: Run, file: Path) -> dict[str, Any]:
    if not is_there(file):
        return {}
    try:
        value = read_json_file(file)
    except UnreadableFileError as error:
        run.missing.append(f"The content of {file.name}: {error.reason}.")
        return {}
    if not isinstance(value, dict):
        run.missing.append(f"The content of {file.name}: it is damaged.")
    return mapping(value)
