"""Fill the figures of the README, and of a round in docs/performance.md, from the committed results, between their markers.

python benchmarks/readme_figures.py
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.algorithms.methods import TASKS
from benchmarks.algorithms.page import seeds_of, shares_of, times_of
from benchmarks.algorithms.summary import always_sooner
from benchmarks.demo_seeds import gone_by_kinds, judged_as_trained, told_of_teacher
from benchmarks.fidelity import OWN
from benchmarks.shared.command import parser
from benchmarks.shared.pages import fill, put_between
from benchmarks.shared.places import RESULTS, ROOT
from benchmarks.shared.results import read
from rlcm.pipelines.families import FAMILIES
from rlcm.rewards import BUILT_IN

BEGIN, END = "<!-- figures: written by benchmarks/readme_figures.py -->", "<!-- end of figures -->"
WHY, END_OF_WHY = "<!-- why: written by benchmarks/readme_figures.py -->", "<!-- end of why -->"


def why() -> str:
    """Return why somebody would use it: four lines, each with a figure and a link."""
    runs = read(RESULTS / "demo.json")["runs"]
    judged = judged_as_trained(runs)
    gone = [one["errors_gone"]["mean"] for one in judged]
    minutes = max(run["whole_command_seconds"] for run in runs) / 60
    gone_in = f"{min(gone):.0%} to {max(gone):.0%} of the base model's wrong pictures in {minutes:.0f} minutes on two CPU cores"
    lines = [
        "**Any reward**: a Python function of images and prompts, differentiable or not. "
        f"{len(BUILT_IN)} rewards are built in ([rewards](docs/rewards.md)).",
        f"**Fast**: {sooner()} ([which algorithm](docs/algorithms/study.md)).",
        "**Honest**: a held-out judge, image diversity and the KL to the base model show whether a gain is real. By that judge "
        f"the demo, run to its end, fixes {gone_in}, on prompts that were not trained on ([measured](docs/demo.md)).",
        f"**Portable**: {len(FAMILIES)} kinds of diffusers pipelines, from LCM to FLUX.2 and Qwen-Image ([models](docs/models.md)). "
        "The result is a LoRA for diffusers, ComfyUI or A1111 ([export](docs/export.md)).",
    ]
    return "\n".join(f"- {line}" for line in lines)


def sooner() -> str:
    """Return how much sooner branched rollouts, and back-propagation, have published RLCM's best reward, equally tuned."""
    tasks = read(RESULTS / "algorithms.json")["tasks"]

    def told(task: str, method: str) -> str:
        methods = tasks[task]["methods"]
        up = methods[method]["to_plain"]["speed_up"]["median"]
        if up is None or round(up, 1) <= 1:
            return "not sooner"
        return f"{up:.1f} times sooner{'' if always_sooner(methods, method) else ' in the median'}"

    small, large = (told(task, "branched-uniform") for task in ("jpeg_compressibility", "jpeg_incompressibility"))
    words, gradient = (told("alignment", method) for method in ("branched-uniform", "reward_backprop"))
    ddpo = tasks["jpeg_compressibility"]["ddpo"]
    as_ddpo = ddpo["methods"]["branched-uniform"]["to_gain"]["speed_up"]["median"]
    minutes = ddpo["variants"][ddpo["furthest"]]["spent"]["cpu"] / 60
    return (
        "with every method tuned by the same search, branched rollouts have the published method's best sound reward "
        f"{small} for small JPEG files and {large} for large ones. What DDPO gains on the small ones in {minutes:.0f} minutes of "
        f"computing, still rising, they gain {as_ddpo:.0f} times sooner, without the default's leash. "
        f"For text alignment they are {words}; back-propagating the reward is {gradient}"
    )


def rounds() -> str:
    """Return what docs/performance.md says of a round: against its calls alone, and against a loop as published."""
    speed = read(RESULTS / "speed.json")
    bare, published = (speed[key]["median"] for key in ("round_over_bare", "published_over_round"))
    return (
        f"A round of plain RLCM takes {bare:.2f} times as long as its network and decoder calls alone. A loop in the style of the "
        f"published code takes {published:.1f} times as long as that round (`python benchmarks/speed.py`). "
        f"Machine: {speed['machine']}."
    )


def _right_after(task: str, found: Mapping[str, Any], seeds: str) -> tuple[str, str, str]:
    before = f"{found['untrained']['judge']:.1%}"
    order = sorted(found["methods"].items(), key=lambda one: -one[1]["judge"]["mean"])
    told = [f"`{name}` {shares_of(one['judge'])}, in the end {one['end']['judge']['mean']:.1%}" for name, one in order]
    return (
        f"`{task}`, equally tuned, {seeds} seeds: right on unseen prompts by the held-out judge, at the evaluation with the best "
        f"reward that it does not veto; {before} before",
        "; ".join(told),
        "[docs/algorithms/study.md](docs/algorithms/study.md)",
    )


def equally_tuned() -> list[tuple[str, str, str]]:
    """Return how every method of the study compares with published RLCM, a row for each task."""
    rows = []
    for task, found in read(RESULTS / "algorithms.json")["tasks"].items():
        seeds = seeds_of(found["methods"].values())
        if TASKS[task].asks:  # there the judge says more than a time
            rows.append(_right_after(task, found, seeds))
            continue
        ups = {name: one["to_plain"]["speed_up"] for name, one in found["methods"].items() if name != "rlcm"}
        there = sorted((name for name in ups if (ups[name]["median"] or 0) > 1), key=lambda name: -ups[name]["median"])
        times = [f"`{name}` {times_of(ups[name])}" for name in there]
        if others := ", ".join(f"`{name}`" for name in ups if name not in there):
            times.append(f"not sooner: {others}")
        rows.append(
            (
                f"`{task}`, equally tuned, {seeds} seeds: how many times sooner the published method's best reward is reached",
                ", ".join(times),
                "[docs/algorithms/study.md](docs/algorithms/study.md)",
            )
        )
    return rows


def fidelity() -> tuple[str, str, str]:
    """Return how sharp pictures are after tuning, and how far from renders, as a row."""
    found = read(RESULTS / "fidelity.json")
    seeds = max(len(runs) for runs in found["runs"].values())

    def ratios(runs: list[dict[str, Any]], key: str) -> list[float]:
        return [run["steps"][str(OWN)][key] / found["base"][str(OWN)][key] for run in runs]

    told = ", ".join(
        f"`{method}` {min(sharp):.0%} to {max(sharp):.0%} and {min(far):.2f} to {max(far):.2f}; {mean(run['kl'] for run in runs):.0f}"
        for method, runs in found["runs"].items()
        for sharp, far in [(ratios(runs, "sharpness"), ratios(runs, "to_real"))]
    )
    what = (
        f"{found['minutes']:g} minutes of tuning, {seeds} seeds: sharpness and distance to renders, relative to the base model; how "
        "far the model moved, in nats an image"
    )
    return what, told, "[docs/fidelity.md](docs/fidelity.md)"


def at_length() -> tuple[str, str, str]:
    """Return the row of the demo with four times as many rounds."""
    runs = read(RESULTS / "demo-long.json")["runs"]
    before, after = ([one[whose]["right"]["overall"] for one in judged_as_trained(runs)] for whose in ("base", "tuned"))
    return (
        f"four times as many rounds of the demo, {len(runs)} seeds: the same; the teacher of the model in 50 steps",
        f"{min(before):.1%} before, {min(after):.1%} to {max(after):.1%} after; {told_of_teacher()}",
        "[docs/demo-long.md](docs/demo-long.md)",
    )


def figures() -> str:
    """Return the section's text."""
    demo = read(RESULTS / "demo.json")
    speed = read(RESULTS / "speed.json")
    model = read(ROOT / "src" / "rlcm" / "builtin" / "weights" / "evaluation.json")
    runs = demo["runs"]
    judged = judged_as_trained(runs)
    before, after = ([one[whose]["right"]["overall"] for one in judged] for whose in ("base", "tuned"))
    gone, by_kinds = [one["errors_gone"]["mean"] for one in judged], [gone_by_kinds(one) for one in judged]
    seconds = [run["whole_command_seconds"] for run in runs]
    memory = max(run["peak_memory_mb"] for run in runs) / 1000
    rows = [
        (
            f"demo without its time limit, {len(runs)} seeds: right pictures by the held-out judge, on prompts not trained on",
            f"{min(before):.1%} before, {min(after):.1%} to {max(after):.1%} after",
            "[docs/demo.md](docs/demo.md)",
        ),
        (
            "demo: share of the base model's wrong pictures that are gone, net; as a mean of the kinds of prompts",
            f"{min(gone):.0%} to {max(gone):.0%}; {min(by_kinds):.0%} to {max(by_kinds):.0%}",
            "the same",
        ),
        (
            "demo: time of the whole command; peak memory",
            f"{min(seconds):.0f} to {max(seconds):.0f} s; {memory:.2f} GB",
            "the same",
        ),
        at_length(),
        *equally_tuned(),
        fidelity(),
        (
            "time of a round of plain RLCM, divided by that of its network and decoder calls",
            f"{speed['round_over_bare']['median']:.2f} times",
            "`benchmarks/speed.py`",
        ),
        (
            "time of a loop in the style of the published code, over that of such a round",
            f"{speed['published_over_round']['median']:.1f} times",
            "the same",
        ),
        (
            "built-in model, untuned, 4 steps and 1 step: right pictures, mean over the kinds of prompts",
            f"{model['student_4']['score']['overall']:.1%}, {model['student_1']['score']['overall']:.1%}",
            "[its card](src/rlcm/builtin/weights/README.md)",
        ),
    ]
    table = "".join(f"| {what} | {value} | {where} |\n" for what, value, where in rows)
    return f"| what | measured | by |\n|---|---|---|\n{table}\nMachine: {demo['machine']}."


def main() -> None:
    """Write the section."""
    parser(__doc__).parse_args()
    put_between(ROOT / "README.md", BEGIN, END, figures())
    put_between(ROOT / "README.md", WHY, END_OF_WHY, why())
    fill("performance.md", "rounds", rounds())


if __name__ == "__main__":
    main()
