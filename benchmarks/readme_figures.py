"""Fill the README's figures from the committed results, between its markers.

python benchmarks/readme_figures.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.reproduction.reading import of_former_model
from benchmarks.shared.command import parser
from benchmarks.shared.pages import put_between
from benchmarks.shared.places import RESULTS, ROOT
from benchmarks.shared.results import read, read_if_there
from rlcm.pipelines.families import FAMILIES
from rlcm.report.words import counted, written
from rlcm.rewards import BUILT_IN

BEGIN, END = "<!-- figures: written by benchmarks/readme_figures.py -->", "<!-- end of figures -->"
WHY, END_OF_WHY = "<!-- why: written by benchmarks/readme_figures.py -->", "<!-- end of why -->"


def why() -> str:
    """Return why somebody would use it: four lines, each with a figure and where it comes from."""
    runs, speed = read(RESULTS / "demo.json")["runs"], read(RESULTS / "speed.json")
    judged = [run["judged"][f"unseen, {run['steps']}"] for run in runs]
    gone = [one["errors_gone"]["mean"] for one in judged]
    minutes = max(run["whole_command_seconds"] for run in runs) / 60
    slower = f"{speed['published_over_round']['median']:.1f} times as long as a round here"
    mended = f"{min(gone):.0%} to {max(gone):.0%} of the errors are gone in {minutes:.0f} minutes on two CPU cores"
    lines = [
        "**Any reward**: a Python function of pictures and prompts, with or without a gradient. "
        f"{len(BUILT_IN)} more come with it ([rewards](docs/rewards.md)).",
        f"**Fast**: a loop in the style of the published code takes {slower}, "
        "which costs no more than its network calls ([performance](docs/performance.md)).",
        f"**Honest**: a judge that no training sees looks on. In the demo above {mended}, "
        "on prompts that were not trained on ([the demo, measured](docs/demo.md)).",
        f"**Portable**: {len(FAMILIES)} kinds of diffusers pipelines, from LCM to FLUX.2 and Qwen-Image "
        "([models](docs/models.md)). The LoRA loads in diffusers, ComfyUI and A1111 ([export](docs/export.md)).",
    ]
    return "\n".join(f"- {line}" for line in lines)


def figures() -> str:
    """Return the section's text."""
    demo = read(RESULTS / "demo.json")
    speed = read(RESULTS / "speed.json")
    model = read(ROOT / "src" / "rlcm" / "builtin" / "weights" / "evaluation.json")
    runs = demo["runs"]
    judged = [run["judged"][f"unseen, {run['steps']}"] for run in runs]
    before, after = ([one[whose]["right"]["overall"] for one in judged] for whose in ("base", "tuned"))
    gone = [one["errors_gone"]["mean"] for one in judged]
    seconds = [run["whole_command_seconds"] for run in runs]
    memory = max(run["peak_memory_mb"] for run in runs) / 1000
    rows = [
        (
            f"the demo, {len(runs)} seeds: right pictures by the held-out judge, on prompts that were not trained on",
            f"{min(before):.1%} before, {min(after):.1%} to {max(after):.1%} after",
            "[docs/demo.md](docs/demo.md)",
        ),
        ("the demo: share of the errors that is gone", f"{min(gone):.0%} to {max(gone):.0%}", "the same"),
        (
            "the demo: time of the whole command; peak memory",
            f"{min(seconds):.0f} to {max(seconds):.0f} s; {memory:.2f} GB",
            "the same",
        ),
        (
            "a round over its bare network and decoder calls",
            f"{speed['round_over_bare']['median']:.2f} times",
            "`benchmarks/speed.py`",
        ),
        (
            "a loop in the style of the published code over a round",
            f"{speed['published_over_round']['median']:.1f} times",
            "the same",
        ),
        (
            "built-in model, untuned, 4 steps and 1 step: right pictures, mean of the kinds",
            f"{model['student_4']['score']['overall']:.1%}, {model['student_1']['score']['overall']:.1%}",
            "[its card](src/rlcm/builtin/weights/README.md)",
        ),
    ]
    rows[3:3] = _against_ddpo()
    table = "".join(f"| {what} | {value} | {where} |\n" for what, value, where in rows)
    return f"| what | measured | by |\n|---|---|---|\n{table}\nMachine: {demo['machine']}."


def _against_ddpo() -> list[tuple[str, str, str]]:
    """Return how much sooner than DDPO each task was learnt, of those that were measured."""
    study, rows = read_if_there(RESULTS / "reproduce.json"), []
    of = "former built-in model, " if of_former_model(study) else ""
    for task, found in study.get("curves", {}).items():
        source = study["sources"]["curves"][task]
        if found["baseline"] != "ddpo" or not found["targets"]:
            continue
        for method, name in (("rlcm", "the default"), ("rlcm-published", "RLCM as published")):
            # The smaller of the two, as on the page.
            goals = {"at what": found["targets"][-1], "at a gain as large as": found["equal_gain"]}
            told = {goal: target["methods"][method]["seconds"] for goal, target in goals.items() if method in target["methods"]}
            told = {goal: entry for goal, entry in told.items() if not entry.get("from_start")}
            if not told:
                continue
            ddpo = next(each for each in found["methods"] if each["name"] == found["baseline"])
            gain = abs(ddpo["after"]["mean"] / ddpo["before"]["mean"] - 1)
            goal, entry = min(told.items(), key=lambda item: float(item[1].get("speedup", 0.0)))
            value = _sooner(entry)
            if "speedup" not in entry and "speedup" in told["at a gain as large as"]:
                value += f"; at as large a gain {_sooner(told['at a gain as large as'])}"
            after = f"{source['budget_minutes']:g} min"
            what = f"{of}{task}, {counted(source['seeds'], 'seed')}: {name} {goal} untuned DDPO reaches in {after}"
            rows.append((f"{what} (a change of {gain:.1%})", value, "[docs/results.md](docs/results.md)"))
    return rows


def _sooner(entry: Any) -> str:
    if "speedup" not in entry:
        return "not reached"
    low, high = entry["interval"] or (entry["speedup"],) * 2
    return f"{written(entry['speedup'])} times sooner ({written(low)} to {written(high)})"


def main() -> None:
    """Write the section."""
    parser(__doc__).parse_args()
    put_between(ROOT / "README.md", BEGIN, END, figures())
    put_between(ROOT / "README.md", WHY, END_OF_WHY, why())


if __name__ == "__main__":
    main()
