"""Settings for the default on a reward of right or wrong, tried side by side and judged by the referee, as `demo_trials.py` has it.

    python benchmarks/default_trials.py [--trials default nft ...] [--seeds 10 11] [--minutes 4] [--jobs 1]

`benchmarks/referee.py` must have made the referee before. Each trial is a run of `composition` on the training prompts, for the same
minutes of computing on one thread. The held-out judge is not asked. Writes benchmarks/results/default_trials.json; what is in it with
the same changes is not tried again.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.demo_trials import referee
from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS, ROOT
from benchmarks.shared.training import train_once
from rlcm.processes.machine import describe_machine

_NFT = ["algorithm.loss=nft"]
_FOUR = ["rollout.branches=1", "rollout.images_per_prompt=4", "rollout.batch_size=64", "algorithm.advantage=group"]
_GRADED = "rewards=[{name: composition, args: {graded: true}}]"
TRIALS: dict[str, list[str]] = {
    "default": [],
    "target 0.1": ["algorithm.kl_target=0.1"],
    "no leash": ["algorithm.kl_coefficient=0"],
    "four a prompt, rate 3e-3": [*_FOUR, "optimizer.lr=3e-3"],
    "nft": _NFT,
    "graded": [_GRADED],
    "nft, graded": [*_NFT, _GRADED],
    "nft, eight branches": [*_NFT, "rollout.branches=8", "rollout.batch_size=128"],
}
"""As changes of the default."""
FILE = RESULTS / "default_trials.json"


def _folder(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name)


def tried(name: str, seed: int, minutes: float, output: Path) -> dict[str, Any]:
    """Train, and return what the referee says of the result."""
    limit = ["run.rounds=1000000", f"run.time_limit_minutes={minutes}", "run.clock=cpu", "run.save_every=0"]
    short = ["evaluation.images=60", "evaluation.every=0", "optimizer.schedule=linear"]
    reward = [] if _GRADED in TRIALS[name] else ["rewards=[composition]"]
    changes = [*reward, "prompts=world", *TRIALS[name], *limit, *short]
    folder = train_once(output / f"{_folder(name)}-{seed}", seed, changes)
    last = files.read(folder / "eval.json")["evaluations"][-1]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {"round": last["round"], "kl": last["kl"]["mean"], "idle_groups": mean(row["idle_groups"] for row in rows)}
    return {"changes": TRIALS[name], **found} | referee(folder, tuned=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Try what is missing."""
    options = parser(__doc__)
    options.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    options.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    options.add_argument("--minutes", type=float, default=4.0, help="of computing, each")
    options.add_argument("--jobs", type=int, default=1, help="runs side by side, a thread each")
    options.add_argument("--keep", type=Path, default=ROOT / "runs" / "default-trials")
    given = options.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, Any] = files.read(FILE) if FILE.exists() else {"minutes": given.minutes, "trials": {}}
    if found["minutes"] != given.minutes:
        raise SystemExit(f"{FILE} has trials of {found['minutes']:g} minutes; move it away for others")
    found["machine"] = describe_machine()
    keys = {f"{name}, {seed}": (name, seed) for seed in given.seeds for name in given.trials}
    missing = [key for key, (name, _) in keys.items() if found["trials"].get(key, {}).get("changes") != TRIALS[name]]
    with ThreadPoolExecutor(given.jobs) as pool:
        for key, one in zip(missing, pool.map(lambda k: tried(*keys[k], given.minutes, given.keep), missing), strict=True):
            if "base" not in found:
                name, seed = keys[key]
                found["base"] = referee(given.keep / f"{_folder(name)}-{seed}", tuned=False)
            found["trials"][key] = one
            files.write(FILE, found)
            base = found["base"]["right"]["overall"]
            print(
                f"{key}: {one['right']['overall']:.1%} right (base {base:.1%}), {one['kl']:.1f} nats, {one['idle_groups']:.0%} of the "
                "groups idle",
                flush=True,
            )


if __name__ == "__main__":
    main()
