"""kill -9 at random instants: does the run that goes on end as one that nobody disturbed?

    python benchmarks/faults/kill.py [--kills 20] [--seed 0]
    python benchmarks/faults/kill.py --demo --kills 4

A small run of the built-in model (averaged weights, KL leash, two inner epochs, an evaluation and a checkpoint every round or
two), or the demo as it is, is played once undisturbed. Then, for every kill, it is started anew and killed at a random instant
between the first sight of its folder and its end. Of the small run's, every fourth one is killed while a checkpoint is being
written and every tenth before the folder is there. What the run itself said is typed: `rlcm train --resume RUN`, or the first
command again where it had said nothing yet. The tuned LoRA must be that of the undisturbed run, byte for byte, and every round
must stand in metrics.jsonl once.

Writes benchmarks/results/faults_kill.json, or faults_demo.json.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.pages import fill
from benchmarks.shared.places import RESULTS
from rlcm.processes.machine import describe_machine

SMALL = [
    "name=run",
    "sampler.steps=2",
    "rollout.batch_size=4",
    "rollout.branches=1",
    "algorithm.kl_coefficient=0",
    "rollout.branches=2",
    "lora.ema_decay=0.9",
    "algorithm.kl_coefficient=0.1",
    "algorithm.inner_epochs=2",
    "algorithm.stat_buffer_size=8",
    "algorithm.stat_min_count=2",
    "evaluation.images=4",
    "evaluation.every=2",
    "evaluation.grid=4",
    "run.rounds=12",
    "run.save_every=1",
    "run.keep_last=2",
]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `rlcm` with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-m", "rlcm", *arguments], stdout=file, stderr=file, env=environment)


def outcome(run: Path) -> tuple[bytes, list[int]]:
    """Return a run's tuned LoRA, and the rounds that its metrics name."""
    lora = (run / "final" / "pytorch_lora_weights.safetensors").read_bytes()
    return lora, [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def suggested(log: Path) -> list[str] | None:
    """Return the arguments of the command that a run suggested, None where it has said nothing."""
    found = re.search(r"go on with: rlcm (train --resume \S+)", " ".join(log.read_text().split()))
    return found[1].split() if found else None


def seen(run: Path) -> bool:
    """Say whether a run's folder is there, with its configuration."""
    return (run / "config.yaml").is_file()


def wait_until_killed(process: subprocess.Popen[bytes], run: Path, after: float, when: str) -> str:
    """Kill a process at an instant and return what the run was at.

    Args:
        after: seconds after the folder was seen, or, of `start`, after the process began.
        when: start, checkpoint (the first one written after that instant) or any.
    """
    while when != "start" and process.poll() is None and not seen(run):
        time.sleep(0.01)
    began = time.monotonic()
    while process.poll() is None:
        due = time.monotonic() - began >= after
        if due and (when != "checkpoint" or any(run.glob(".checkpoint-*.partial"))):
            process.kill()
            process.wait()
            break
        time.sleep(0.0005 if when == "checkpoint" else 0.01)
    if any(run.glob(".checkpoint-*.partial")):
        return "while a checkpoint was written"
    if not seen(run):
        return "before the run's folder was written"
    if (run / "final").exists():
        return "after the tuned LoRA was written"
    found = sorted(run.glob("checkpoint-*"))
    return f"after {found[-1].name}" if found else "before the first checkpoint"


def table(kills: list[dict[str, Any]]) -> str:
    """Return the kills as Markdown, those at the same point of the run as one row."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kill in kills:
        rows.setdefault((kill["at"], kill["typed"]), []).append(kill)
    lines = [
        "| killed | times | then typed | same LoRA, byte for byte | every round once in metrics.jsonl |",
        "|---|---|---|---|---|",
    ]
    for (at, typed), group in sorted(rows.items()):
        same, whole = (sum(kill[key] for kill in group) for key in ("same_lora", "rounds_whole"))
        lines.append(f"| {at} | {len(group)} | `{typed}` | {same} of {len(group)} | {whole} of {len(group)} |")
    return "\n".join(lines)


def main() -> None:
    """Kill and go on, and write what came of it."""
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--demo", action="store_true")
    arguments = options.parse_args()
    settings, name = (["demo", "name=demo"], "demo") if arguments.demo else (SMALL, "run")
    draw = random.Random(arguments.seed)
    kills: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        process = start(["train", *settings, f"output={folder / 'undisturbed'}"], folder / "log")
        before = time.monotonic()
        while process.poll() is None and not seen(folder / "undisturbed" / name):
            time.sleep(0.01)
        began = time.monotonic()
        if process.wait():
            raise SystemExit((folder / "log").read_text())
        length, loading = time.monotonic() - began, began - before
        expected = outcome(folder / "undisturbed" / name)
        print(f"undisturbed: {length:.1f} s after {loading:.1f} s of loading", flush=True)
        for number in range(arguments.kills):
            output, log = folder / f"killed-{number}", folder / f"log-{number}"
            command = ["train", *settings, f"output={output}"]
            when = "any"
            if not arguments.demo:
                when = "checkpoint" if number % 4 == 3 else "start" if number % 10 == 0 else "any"
            after = draw.uniform(0, loading if when == "start" else length * (0.8 if when == "checkpoint" else 1))
            at = wait_until_killed(start(command, log), output / name, after, when)
            typed = suggested(log)
            status = start(typed or command, log).wait()
            lora, rounds = outcome(output / name)
            kills.append(
                {
                    "after_seconds": round(after, 2),
                    "at": at,
                    "typed": "rlcm train --resume RUN" if typed else "the same command",
                    "exit_code": status,
                    "same_lora": lora == expected[0],
                    "rounds_whole": rounds == expected[1] == list(range(1, len(rounds) + 1)),
                }
            )
            print(kills[-1], flush=True)
    good = sum(kill["same_lora"] and kill["rounds_whole"] and kill["exit_code"] == 0 for kill in kills)
    found = {
        "machine": describe_machine(),
        "command": " ".join(["python benchmarks/faults/kill.py", *sys.argv[1:]]),
        "rounds": len(expected[1]),
        "undisturbed_seconds": round(length, 1),
        "kills": kills,
        "same_byte_for_byte": good,
        "passed": good == len(kills) > 0,
    }
    place = "demo-kills" if arguments.demo else "kills"
    results.write(RESULTS / f"faults_{'demo' if arguments.demo else 'kill'}.json", found)
    fill("reliability.md", place, table(kills) + f"\n\nMachine: {describe_machine()}.")
    print(f"{good} of {len(kills)} ended byte for byte as the undisturbed run")


if __name__ == "__main__":
    main()
