"""Settings for the demo, tried side by side and judged by the referee: a third detector that no reward, no claim and no page uses.

    python benchmarks/demo_trials.py [--trials plain long ...] [--seeds 10 11]

`benchmarks/referee.py` must have made the referee before.
Each is a whole run of the demo in a process of its own, on its training prompts, and then three pictures of each with noise that
nothing else has. The judge is not asked. Writes benchmarks/results/demo_trials.json; what is in it is not tried again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.referee import trained
from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS, ROOT
from rlcm.builtin.judging import by_kind, right, sharpness
from rlcm.builtin.prompts import prompt_set
from rlcm.builtin.vocabulary import every, metadata
from rlcm.pipelines import make_denoiser
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import pictures_of
from rlcm.processes.machine import describe_machine
from rlcm.sharing import tuned_pipeline
from rlcm.training.config import load_config

NFT_AND_GRADIENT = [
    "algorithm.loss=nft",
    "algorithm.last_call_weight=0.5",
    "algorithm.backprop_calls=1",
    "rollout.images_per_prompt=4",
]
"""DiffusionNFT's loss, and beside it the reward's own gradient through the last call."""


def _minutes(minutes: int) -> list[str]:
    """Return the changes by which a trial has so many minutes of computing."""
    return ["run.rounds=100000", "run.clock=cpu", f"run.time_limit_minutes={minutes}"]


TRIALS: dict[str, list[str]] = {
    "plain": ["run.rounds=60", "run.time_limit_minutes=null"],
    "long": ["run.rounds=120", "run.time_limit_minutes=null"],
    "longer": ["run.rounds=480", "run.time_limit_minutes=null"],
    "aligned-long": [
        "rewards=[{name: composition, args: {graded: true}}, {name: alignment, weight: 1}]",
        "run.time_limit_minutes=null",
    ],
    **{f"{count} others": ["run.time_limit_minutes=null"] for count in (40, 120, 250)},
    "250 others, 4 calls": ["run.time_limit_minutes=null", "algorithm.backprop_calls=4"],
    "nft and gradient": [*NFT_AND_GRADIENT, *_minutes(4)],
    "nft and gradient, weight 2": [*NFT_AND_GRADIENT, "algorithm.last_call_weight=2", *_minutes(4)],
    "nft and gradient, 20 minutes": [*NFT_AND_GRADIENT, *_minutes(20)],
    "20 minutes": _minutes(20),
}
"""As changes of the demo. Of "others" the prompts are others, too: of two things, of a place and of two colours so many of each that
are not in `world`. Of these three kinds the referee sees what carries over to unseen prompts; of the others it sees trained ones."""
LARGE = ("two_object", "position", "color_attr")
"""The kinds of which there are hundreds of prompts."""
SEEDS = (10, 11)
EACH, BATCH = 3, 60
FILE = RESULTS / "demo_trials.json"


def tried(name: str, seed: int, output: Path) -> dict[str, Any]:
    """Train, and return what the referee says of the result."""
    folder = _folder(name, seed, output)
    started = time.monotonic()
    others = [f"prompts={_others(int(name.split()[0]), output)}"] if " others" in name else []
    changes = [*TRIALS[name], *others, f"seed={seed}", f"name={folder.name}", f"output={output}", "evaluation.images=2"]
    if not (folder / "final").is_dir():
        subprocess.run([sys.executable, "-m", "rlcm", "train", "demo", *changes], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "changes": [*TRIALS[name], *(["prompts: see `_others`"] if others else [])],
        "seconds": seconds,
        "reward": last["reward"],
    } | referee(folder, tuned=True)


def _folder(name: str, seed: int, output: Path) -> Path:
    return output / f"{name.replace(',', '').replace(' ', '-')}-{seed}"


def _others(count: int, output: Path) -> Path:
    """Return a file of prompts: those of `world` of the kinds that have no others, and of each kind that has, so many others."""
    entries = [entry for entry in prompt_set("world") if entry["tag"] not in LARGE]
    taken = {entry["prompt"] for name in ("world", "world-unseen") for entry in prompt_set(name)}
    for tag in LARGE:
        pool = [found for asked in every(tag, held_out=False) if (found := metadata(asked))["prompt"] not in taken]
        entries += [pool[i] for i in np.random.default_rng(count).permutation(len(pool))[:count]]
    file = output / f"others-{count}.jsonl"
    output.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def referee(folder: Path, tuned: bool) -> dict[str, Any]:
    """Return what the referee says of a run's model, or of the one that it began with."""
    config = load_config(folder / "config.yaml")
    wanted = [entry for entry in prompt_set("world") for _ in range(EACH)]
    denoiser = make_denoiser(tuned_pipeline(config, folder if tuned else None), config.sampler, config.model)
    seeds = [image_seed("choice", place) for place in range(len(wanted))]
    images = pictures_of(denoiser, [entry["prompt"] for entry in wanted], seeds, BATCH)
    return {"right": by_kind(right(trained(), images, wanted), wanted), "sharpness": sharpness(images)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Try what is missing."""
    options = parser(__doc__)
    options.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    options.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options.add_argument("--keep", type=Path, default=ROOT / "runs" / "demo-trials")
    given = options.parse_args(arguments)
    found: dict[str, Any] = files.read(FILE) if FILE.exists() else {"trials": {}}
    found["machine"] = describe_machine()
    for seed in given.seeds:
        for name in given.trials:
            key = f"{name}, {seed}"
            if key not in found["trials"]:
                found["trials"][key] = tried(name, seed, given.keep)
                if "base" not in found:
                    found["base"] = referee(_folder(name, seed, given.keep), tuned=False)
                files.write(FILE, found)
            one = found["trials"][key]
            print(f"{key}: {one['right']['overall']:.1%} right (base {found['base']['right']['overall']:.1%})", flush=True)


if __name__ == "__main__":
    main()
