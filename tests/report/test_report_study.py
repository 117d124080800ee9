"""What the report page shows of `rlcm eval`: numbers of steps, and the best, median and worst pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from written_runs import PROMPTS, SEEDS, SIZE, Page, write_samples

from rlcm.report import read_run, write_report
from rlcm.report.steps import rewards_of, y_label


def write_study(run: Path) -> dict[str, Any]:
    """Write what `rlcm eval` leaves: two sets, base and tuned at three numbers of steps, one reward held out."""
    results = [
        {
            "model": model, "set": group, "steps": steps, "images": 24, "images_per_second": 400 / steps,
            "rewards": {"jpeg": {"mean": -1.5 + 0.1 * steps, "ci95": 0.02}, "beauty": {"mean": 5.0, "ci95": 0.1}},
            "judge": {"right": {"mean": 0.99, "ci95": 0.01}, "position": {"mean": 0.5, "ci95": 0.05}},
        }
        for model in ("base", "tuned") for group in ("train", "a <b> & c") for steps in (1, 2, 4)
    ]  # fmt: skip
    found: dict[str, Any] = {
        "own_steps": 4, "machine": "a laptop",
        "rewards": [
            {"label": "jpeg", "trained": True, "display": {"label": "JPEG size", "unit": "kB", "better": "lower"}},
            {"label": "beauty", "trained": False, "display": None},
        ],
        "sets": [
            {"name": "train", "kind": "train", "prompts": 6, "trained": 6},
            {"name": "a <b> & c", "kind": "held-out", "prompts": 6, "trained": 2},
        ],
        "results": results,
        "pictures": [
            {"file": "pictures/tuned-1.png", "model": "tuned", "set": "train", "steps": [1, 2, 4], "prompts": PROMPTS[:2]},
            {"file": "pictures/gone.png", "model": "base", "set": "train", "steps": [1, 2, 4], "prompts": PROMPTS[:2]},
        ],
    }  # fmt: skip
    (run / "evaluation/pictures").mkdir(parents=True)
    (run / "evaluation/eval.json").write_text(json.dumps(found))
    Image.new("RGB", (40, 72), "green").save(run / "evaluation/pictures/tuned-1.png")
    return found


def test_a_study_of_other_weights_is_left_out(run: Path) -> None:
    study = write_study(run) | {"round": 10}
    (run / "evaluation/eval.json").write_text(json.dumps(study))
    looks = json.loads((run / "eval.json").read_text())
    for final, shown in ((10, True), (20, False)):
        (run / "eval.json").write_text(json.dumps(looks | {"final_round": final}))
        page = Page(write_report(run))
        assert ("How many steps it needs" in page.text) is shown
        assert ("is of the weights of round 10, and final/ has those of round 20" in page.text) is not shown


def test_a_study_is_shown(run: Path) -> None:
    write_study(run)
    page = Page(write_report(run))
    for words in (
        "How many steps it needs", "Trained with 4 steps. a laptop", "JPEG size against steps", "JPEG size against speed",
        "train: 6 prompts, 24 images a row", "a <b> & c: held-out, 6 prompts, 24 images a row, 2 of the prompts were trained on",
        "beauty, held out", "JPEG size, kB", "1.10 ± 0.02", "judge: right pictures, %", "99.0 ± 1.0",
        "judge: right, of a place, %", "50.0 ± 5.0", "Held out: not trained on.",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.source.count("a row for each number of steps: 1, 2, 4") == 1  # the other picture is not there
    assert all((run / link).exists() for link in page.links)
    assert "evaluation/eval.json" in page.links
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith(("data:", "#")) for address in page.loaded)


@pytest.mark.parametrize(("display", "better"), [(None, "lower"), ({"label": "size", "better": "lower"}, "higher")])
def test_a_study_knows_the_penalties_of_the_run(run: Path, display: dict[str, str] | None, better: str) -> None:
    with open(run / "config.yaml", "a") as file:
        file.write("rewards: [{name: jpeg, label: jpeg, weight: -1}, {name: beauty, label: beauty, weight: -1}]\n")
    study = write_study(run)
    study["rewards"][0]["display"] = display
    (run / "evaluation/eval.json").write_text(json.dumps(study))
    jpeg, beauty = rewards_of(read_run(run).study)
    assert y_label(jpeg).endswith(f"{better} is better")
    assert jpeg["sign"] == (1.0 if display is None else -1.0)
    assert y_label(beauty).endswith("higher is better")  # the study has it as not trained on
    assert y_label(rewards_of(study)[0]).endswith("lower is better" if display else "higher is better")  # weights unknown


@pytest.mark.parametrize(
    "broken",
    [
        {"results": 3}, {"results": [{"steps": "x"}, 5]}, {"pictures": [1, {"file": 3}]}, {"rewards": None, "sets": [None]},
        {"results": [{"model": "base", "set": "s", "steps": 4, "rewards": {"jpeg": {"mean": None}}}]},
    ],
)  # fmt: skip
def test_a_damaged_study_does_no_harm(run: Path, broken: dict[str, Any]) -> None:
    (run / "evaluation/eval.json").write_text(json.dumps(write_study(run) | broken))
    page = Page(write_report(run))
    assert page.headline.startswith("JPEG size fell 31 %")
    assert not re.search(r"\b(nan|inf|none|null)\b", page.text.lower())


def test_best_median_and_worst_of_each_prompt(run: Path) -> None:
    values = [-1.0, -1.2, -1.4, -2.0, -2.2, -2.4]
    write_samples(run, 20, values=[-1.0] * 6)
    for suffix in ("png", "json"):
        (run / f"samples/round-000020.{suffix}").rename(run / f"samples/prompts.{suffix}")
    described = json.loads((run / "samples/prompts.json").read_text())
    described |= {"columns": 3, "prompts": ["a cat"] * 3 + ["a dog"] * 3, "rewards": {"jpeg": values}}
    (run / "samples/prompts.json").write_text(json.dumps(described))
    page = Page(write_report(run))
    assert "Every prompt: best, median, worst" in page.text
    assert re.search(r"best 1.00 kB.*median 1.20 kB.*worst 1.40 kB.*a cat.*best 2.00 kB.*a dog", page.text)


def write_extremes(run: Path, **described: Any) -> None:
    """Write what `rlcm eval` leaves of two prompts: their best, median and worst pictures."""
    write_study(run)
    Image.new("RGB", (60, 48), "green").save(run / "evaluation/pictures/prompts.png")
    found = {"round": 0, "columns": 3, "cell": [24, 20], "prompts": ["a cat"] * 3 + ["a dog"] * 3, "seeds": SEEDS} | described
    (run / "evaluation/pictures/prompts.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("described", "lead", "row"),
    [
        # Of several rewards the pictures are ordered by one, and the run's metric is their sum.
        ({"ordered_by": "beauty", "rewards": {"jpeg": [-1.0] * 6, "beauty": [7.0, 6.0, 5.0] * 2}}, "by beauty.", "7.00"),
        (
            {"ordered_by": "a/b", "display": SIZE, "rewards": {"a/b": [-5, -6, -7] * 2}},
            "by JPEG size (lower is better).",
            "5.00 kB",
        ),
        # The best of a penalty has the least of it.
        ({"ordered_by": "a_b", "rewards": {"a_b": [None] * 3 + [0.7, 0.8, 0.9]}}, "by a b (lower is better).", "0.700"),
        ({"ordered_by": "total", "rewards": {"total": [-7, -8, -9] * 2}}, "by JPEG size (lower is better).", "7.00 kB"),
        ({"rewards": {"jpeg": [-8, -8.5, -9] * 2}}, "by JPEG size (lower is better).", "8.00 kB"),
    ],
)  # fmt: skip
def test_the_best_pictures_are_told_by_what_they_are_ordered_by(run: Path, described: Any, lead: str, row: str) -> None:
    write_extremes(run, **described)
    page = Page(write_report(run))
    assert f"Of the pictures of each prompt on fixed seeds, {lead}" in page.text
    assert f"best {row} median" in re.sub(r" seed \d+", "", page.text)
