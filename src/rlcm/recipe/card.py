"""Writes the model's card from the measured figures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from rlcm.builtin.vocabulary import TAGS, UNSAID
from rlcm.recipe.measure import GUIDANCE, STEPS
from rlcm.recipe.stages import PICTURES, SEEDS, STAGES, TRAJECTORIES
from rlcm.report.templating import render


def write_card(figures: dict[str, Any], work: Path, folder: Path) -> None:
    """Write README.md of the weights' folder; how long the stages took is read from their logs in `work`."""
    text = render(
        "recipe/templates/builtin_card.md.jinja",
        figures=figures,
        rows=score_rows(figures),
        bars=bar_rows(figures),
        kinds=list(TAGS),
        stages=STAGES,
        minutes={stage: stage_minutes(work / f"{stage}.jsonl") for stage in STAGES},
        seeds=SEEDS,
        pictures=PICTURES,
        trajectories=TRAJECTORIES,
        unsaid=UNSAID,
        guidance=GUIDANCE,
    )
    (folder / "README.md").write_text(text)


def score_rows(figures: dict[str, Any]) -> list[tuple[str, dict[str, float], float | None]]:
    """Return (what, score by kind, sharpness) of every set of pictures that was judged."""
    rows: list[tuple[str, dict[str, float], float | None]] = [
        ("fresh renders, by the judge", figures["judge_on_renders"], 1.0),
        ("fresh renders, by the rewards' detector", figures["detector_on_renders"], 1.0),
        ("reconstructions", figures["autoencoder"]["score"], figures["autoencoder"]["sharpness"]),
    ]
    drawn = {"teacher, 50 steps": "teacher_50"}
    drawn |= {f"student, {n} step{'s' if n > 1 else ''}": f"student_{n}" for n in STEPS}
    drawn |= {"student, 4 steps, held-out prompts": "student_4_held_out"}
    return rows + [(what, figures[key]["score"], figures[key]["sharpness"]) for what, key in drawn.items()]


def bar_rows(figures: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return (what, bar, measured, reached) of every bar that the model was to reach."""
    vae, base, teacher = (
        figures["autoencoder"],
        figures["student_4"]["score"]["overall"],
        figures["teacher_50"]["score"]["overall"],
    )
    loss = vae["score_of_the_renders"]["overall"] - vae["score"]["overall"]
    scores = [figures[f"student_{n}"]["score"]["overall"] for n in STEPS]
    sharp = [figures[f"student_{n}"]["sharpness"] for n in STEPS]
    slack = 0.03  # the half-width of a 95 % interval
    worst = {name: min(figures[f"{name}_on_renders"].values()) for name in ("judge", "detector")}
    return [
        ("judge on fresh renders, its worst kind", ">= 98.5 %", f"{worst['judge']:.1%}", worst["judge"] >= 0.985),
        ("rewards' detector, its worst kind", ">= 98.5 %", f"{worst['detector']:.1%}", worst["detector"] >= 0.985),
        ("autoencoder, PSNR", ">= 29 dB", f"{vae['psnr_db']:.2f} dB", vae["psnr_db"] >= 29),
        ("judged right: renders less reconstructions", "<= 1.5 points", f"{100 * loss:.1f} points", loss <= 0.015),
        ("student in 4 steps, score", ".45 to .75", f"{base:.3f}", 0.45 <= base <= 0.75),
        (
            "student in 4 steps below teacher in 50",
            "<= 5 points",
            f"{100 * (teacher - base):.1f} points",
            teacher - base <= 0.05,
        ),
        ("score in 1, 2, 4, 8 steps", "rising", _listed(scores), _rising(scores, slack)),
        ("sharpness in 1, 2, 4, 8 steps", "rising", _listed(sharp), _rising(sharp, slack)),
    ]


def stage_minutes(log: Path) -> float | None:
    """Return how long a stage took, by its log, or None where there is none."""
    if not log.is_file():
        return None
    return float(json.loads(log.read_text().splitlines()[-1])["seconds"]) / 60


def _rising(values: list[float], slack: float) -> bool:
    return all(after >= before - slack for before, after in itertools.pairwise(values))


def _listed(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)
