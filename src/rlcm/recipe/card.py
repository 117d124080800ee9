"""Writes the built-in model's card from the measured figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlcm.recipe.data import HELD_OUT_SEED, JUDGE_SEED, TRAIN_SEED
from rlcm.recipe.measure import STUDENT_GUIDANCE, TEACHER_GUIDANCE
from rlcm.recipe.stages import PICTURES, SEEDS, STAGES
from rlcm.report.templating import render


def write_card(figures: dict[str, Any], folder: Path) -> None:
    """Write README.md of the weights' folder."""
    text = render(
        "recipe/templates/builtin_card.md.jinja",
        figures=figures,
        rows=bar_rows(figures),
        stages=STAGES,
        seeds=SEEDS,
        pictures=PICTURES,
        picture_seeds={"training": TRAIN_SEED, "judge": JUDGE_SEED, "held-out": HELD_OUT_SEED},
        guidance={"teacher": TEACHER_GUIDANCE, "student": STUDENT_GUIDANCE},
    )
    (folder / "README.md").write_text(text)


def bar_rows(figures: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return (what, bar, measured, reached) of every bar that the model was to reach."""
    judge, vae, teacher = figures["judge_on_renders"], figures["autoencoder"], figures["teacher_ddim_50"]
    rows = [
        ("judge on held-out renders, animal", ">= 99 %", judge["animal"], 0.99),
        ("judge on held-out renders, colour", ">= 99 %", judge["colour"], 0.99),
        ("autoencoder, judge on reconstructions, animal", ">= 97 %", vae["animal"], 0.97),
        ("teacher, DDIM 50 steps, animal", ">= 95 %", teacher["animal"], 0.95),
        ("teacher, DDIM 50 steps, colour", ">= 95 %", teacher["colour"], 0.95),
    ]
    bars = {8: 0.93, 4: 0.92, 2: 0.88, 1: 0.75}
    rows += [
        (f"student, {n} step{'s' if n > 1 else ''}, animal", f">= {bar:.0%}", figures[f"student_{n}"]["animal"], bar)
        for n, bar in bars.items()
    ]
    table = [(what, bar, f"{value:.1%}", value >= least) for what, bar, value, least in rows]
    table.insert(2, ("autoencoder, PSNR on held-out renders", ">= 25 dB", f"{vae['psnr_db']:.2f} dB", vae["psnr_db"] >= 25))
    gap = figures["student_4"]["animal"] - figures["student_4_held_out_combinations"]["animal"]
    table.append(
        ("student, 4 steps, held-out combinations below trained ones", "<= 5 points", f"{100 * gap:.1f} points", gap <= 0.05)
    )
    return table
