"""The leash, swept: what reward costs in diversity and in distance from the base model, at several strengths of it.

    python benchmarks/leashes.py [--seeds 0 1 2] [--rounds 40] [--jobs 2]

Runs of the default on the built-in model that differ in their leash alone, on a reward that has one best picture a prompt: small JPEG
files. Evaluated every fifth of the way on the same 90 pictures, and on 64 more for diversity. Then the free way: less of what the runs
without a leash learnt. Writes benchmarks/results/leashes.json, and the table and the picture of docs/frontier.md.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.algorithms.measure import SOUND
from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.pages import fill, table
from benchmarks.shared.places import DOCS, RESULTS, ROOT
from benchmarks.shared.training import train_once
from rlcm.processes.machine import describe_machine
from rlcm.studies.frontier import frontier, measure_strengths, write_frontier
from rlcm.studies.frontier import page as frontier_page

LEASHES: dict[str, list[str]] = {
    "no leash": ["algorithm.kl_coefficient=0"],
    "weight 0.01": ["algorithm.kl_coefficient=0.01", "algorithm.kl_target=null"],
    "weight 0.03": ["algorithm.kl_coefficient=0.03", "algorithm.kl_target=null"],
    "target 0.08": ["algorithm.kl_target=0.08"],
    "target 0.02": ["algorithm.kl_target=0.02"],
    "target 0.005, the default": [],
    "target 0.001": ["algorithm.kl_target=0.001"],
}
"""Strengths of the leash, loose to tight, as changes of the default: its weight alone, or the least weight of 0.1 and a target."""
FREE = "no leash"
"""Whose weights are taken at several strengths as well."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
FILE = RESULTS / "leashes.json"
BAR, OF_GAIN = 0.6, 0.95
"""Share of the base model's diversity that is asked for, and of the largest sound gain at which it is."""


def _named(run: Path) -> str:
    """Return the name of a run's method: its own, without the seed."""
    return run.name.rpartition("-")[0]


def train(leash: str, seed: int, rounds: int, output: Path) -> Path:
    """Train, unless that is done, and return the run's folder."""
    fixed = ["rewards=[jpeg_compressibility]", "prompts=world-objects", "rollout.batch_size=64", "optimizer.lr=1e-3"]
    look = ["evaluation.images=90", "evaluation.diversity_images=64", f"evaluation.every={max(1, rounds // 5)}"]
    folder = output / f"{leash.partition(',')[0].replace(' ', '-')}-{seed}"
    return train_once(folder, seed, [f"run.rounds={rounds}", *fixed, *look, *LEASHES[leash]])


def judged(runs: Sequence[Path]) -> list[float]:
    """Return the share of pictures that the held-out judge finds right at every evaluation, the mean over the seeds."""
    found = [files.read(folder / "eval.json")["evaluations"] for folder in runs]
    return [mean(e["judge"]["right"]["mean"] for e in together) for together in zip(*found, strict=True)]


def readings(found: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Return what the bar can mean, with the largest share of diversity that some evaluation then has, and which one that is."""
    measure, base = found["frontier"]["measure"], found["frontier"]["best"]["base"]
    points = [
        (
            point["reward"] - base,
            point["shares"][measure],
            track["name"],
            point["about"],
            share >= SOUND * found["judge"][track["name"]][0],
        )
        for track in found["frontier"]["tracks"]
        if not track["free"]
        for point, share in zip(track["points"], found["judge"][track["name"]], strict=True)
    ]
    sound = [point for point in points if point[-1]]
    rows = []
    for what, candidates, largest in (
        ("of the largest sound gain without a leash", sound, [point for point in sound if point[2] == FREE.replace(" ", "-")]),
        ("of the largest sound gain of all", sound, sound),
        ("of the largest gain of all, sound or not", points, points),
    ):
        enough = OF_GAIN * max(largest)[0]
        _, share, name, about, _ = max((one for one in candidates if one[0] >= enough), key=lambda one: one[1])
        rows.append((what, share, f"{name} at {about}"))
    return rows


def verdict(found: Mapping[str, Any]) -> str:
    """Return whether the bar is reached, by each of its readings."""
    told = [
        f"{'reached' if share >= BAR else 'missed'}, {share:.0%}, at {OF_GAIN:.0%} {what} ({where})"
        for what, share, where in readings(found)
    ]
    return (
        f"The bar, at least {BAR:.0%} of the base model's diversity at {OF_GAIN:.0%} of the unleashed sound reward, can be read in "
        f"three ways: {'; '.join(told)}. Each is the evaluation that suits it best, a mean of the seeds."
    )


def text(found: Mapping[str, Any], shown: Mapping[str, Any], rounds: int) -> str:
    """Return what the page says of the sweep."""
    judge = found["judge"]
    seeds = max(len(track["seeds"]) for track in found["frontier"]["tracks"])
    right = "; ".join(f"{name} {values[-1]:.0%}" for name, values in judge.items())
    return f"""{seeds} seeds of {rounds} rounds each, made by `python benchmarks/leashes.py`.

{table(shown["heads"], shown["rows"])}
{shown["note"]}

{verdict(found)} Sound: the held-out judge finds at least {SOUND:.0%} as many pictures right as before.
Of {next(iter(judge.values()))[0]:.0%} right pictures before, there are at the end of the runs: {right}."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing, and write table and picture."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    options.add_argument("--keep", type=Path, default=ROOT / "runs" / "leashes", help="a finished run in it is not made again")
    given = options.parse_args(arguments)
    torch.set_num_threads(1)  # as every run has
    wanted = [(leash, seed) for seed in given.seeds for leash in LEASHES]
    with ThreadPoolExecutor(given.jobs) as pool:
        made = list(pool.map(lambda one: train(one[0], one[1], given.rounds, given.keep), wanted))
    runs = {leash: [run for (one, _), run in zip(wanted, made, strict=True) if one == leash] for leash in LEASHES}
    for run in runs[FREE]:
        measure_strengths(run, STRENGTHS, print)
    drawn = frontier([run for folders in runs.values() for run in folders], strengths=True)
    picture = write_frontier(drawn, given.keep / "frontier.html").with_suffix(".png")
    shutil.copy(picture, DOCS / "images" / "frontier.png")
    found = {
        "machine": describe_machine(),
        "rounds": given.rounds,
        "judge": {_named(folders[0]): judged(folders) for folders in runs.values()},
        "frontier": frontier_page.described(drawn),
    }
    for track in found["frontier"]["tracks"]:
        track["runs"] = [Path(run).name for run in track["runs"]]
    files.write(FILE, files.rounded(found))
    told = text(found, frontier_page.table(drawn), given.rounds)
    fill("frontier.md", "leashes", told)
    print(told)


if __name__ == "__main__":
    main()
