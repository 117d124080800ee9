"""kill -9 at random instants: does the run that goes on end as one that nobody disturbed?

    python benchmarks/faults/kill.py [--kills 20] [--seed 0]

A small run of the built-in model (averaged weights, KL leash, two inner epochs, an evaluation and a checkpoint every round or
two) is played once undisturbed. Then, for every kill, it is started anew and killed at a random instant of that length; every
fourth one is killed while a checkpoint is being written. What the folder then says is typed: `rlcm train --resume RUN`, or the
first command again where the folder holds no run yet. The tuned LoRA must be that of the undisturbed run, byte for byte, and
every round must stand in metrics.jsonl once.

Writes benchmarks/results/faults_kill.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from page import fill

from rlcm.machine import describe_machine

RESULT = Path(__file__).parents[1] / "results" / "faults_kill.json"
ROUNDS = 6
SETTINGS = [
    "name=run",
    "sampler.steps=2",
    "rollout.batch_size=4",
    "rollout.branches=2",
    "lora.ema_decay=0.9",
    "algorithm.kl_coefficient=0.1",
    "algorithm.inner_epochs=2",
    "algorithm.stat_buffer_size=8",
    "algorithm.stat_min_count=2",
    "evaluation.images=4",
    "evaluation.every=2",
    "evaluation.grid=4",
    f"run.rounds={ROUNDS}",
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


def wait_until_killed(process: subprocess.Popen[bytes], run: Path, after: float, in_checkpoint: bool) -> str:
    """Kill a process at an instant and return what the run was at."""
    started = time.monotonic()
    while process.poll() is None:
        partial = any(run.glob(".checkpoint-*.partial"))
        if (
            (time.monotonic() - started >= after)
            if not in_checkpoint
            else (partial and time.monotonic() - started >= after / 2)
        ):
            process.kill()
            process.wait()
            break
        time.sleep(0.0005 if in_checkpoint else 0.01)
    if any(run.glob(".checkpoint-*.partial")):
        return "while a checkpoint was written"
    if not (run / "config.yaml").exists():
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    kills: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        began = time.monotonic()
        status = start(["train", *SETTINGS, f"output={folder / 'undisturbed'}"], folder / "log").wait()
        length = time.monotonic() - began
        if status:
            raise SystemExit((folder / "log").read_text())
        expected = outcome(folder / "undisturbed" / "run")
        print(f"undisturbed: {length:.1f} s", flush=True)
        for number in range(arguments.kills):
            output = folder / f"killed-{number}"
            command = ["train", *SETTINGS, f"output={output}"]
            after = draw.uniform(0, length)
            at = wait_until_killed(start(command, folder / "log"), output / "run", after, in_checkpoint=number % 4 == 3)
            begun = (output / "run" / "config.yaml").exists()
            typed = ["train", "--resume", str(output / "run")] if begun else command
            status = start(typed, folder / "log").wait()
            lora, rounds = outcome(output / "run")
            kills.append(
                {
                    "after_seconds": round(after, 2),
                    "at": at,
                    "typed": "rlcm train --resume RUN" if begun else "the same command",
                    "exit_code": status,
                    "same_lora": lora == expected[0],
                    "rounds_whole": rounds == expected[1] == list(range(1, ROUNDS + 1)),
                }
            )
            print(kills[-1], flush=True)
    good = sum(kill["same_lora"] and kill["rounds_whole"] and kill["exit_code"] == 0 for kill in kills)
    found = {
        "machine": describe_machine(),
        "command": "python benchmarks/faults/kill.py " + " ".join(sys.argv[1:]),
        "undisturbed_seconds": round(length, 1),
        "kills": kills,
        "same_byte_for_byte": good,
        "passed": good == len(kills) > 0,
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    fill("reliability.md", "kills", table(kills) + f"\n\nMachine: {describe_machine()}.")
    print(f"{good} of {len(kills)} ended byte for byte as the undisturbed run")


if __name__ == "__main__":
    main()
