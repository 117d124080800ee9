"""One command, under 10 minutes on one large GPU: check, speed and memory in every precision, the doctor on every configuration.

    python benchmarks/gpu.py [--minutes 10] [--tiny] [--only NAME ...] [--again] [--out benchmarks/results/gpu.json]

It needs no weights and no network: models have the published sizes and random weights, and rewards that need weights are
replaced by the brightness of the pictures. For each precision of the large models it plays two rounds: the check before the
first update, images a second by phase with and without the compiler, peak memory beside the estimate, how far sampling and
learning are apart. It asks the doctor about every shipped configuration, and it trains the demo. The most worth comes first.

A case is begun if the time left will do for it; what is left out is named. One that fails is a row with its message, and the
others go on. The file is written after every case: called again, it goes on with what is missing (`--again`: anew). Written where
it belongs, it also becomes a section of docs/performance.md; add the file to the table of benchmarks/README.md then.

`--tiny` runs all of it on models of a few kilobytes, on any machine, to see that it works.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_cases import models
from benchmarks.gpu_cases.cases import CASES, Case, chosen
from benchmarks.gpu_cases.page import text
from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.pages import fill
from benchmarks.shared.places import RESULTS, ROOT
from rlcm.processes.machine import describe_machine
from rlcm.tuning.saying import quiet

RESULT = RESULTS / "gpu.json"


def row_of(case: Case, is_tiny: bool) -> dict[str, Any]:
    """Return what a case found, or the message of its failure, and how long it took."""
    models.clear()
    started = time.monotonic()
    try:
        found = results.rounded(case.run(is_tiny))
    except Exception as error:
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]}
    return found | {"case_seconds": round(time.monotonic() - started, 1)}


def run(cases: list[Case], found: dict[str, Any], out: Path, minutes: float, is_tiny: bool) -> None:
    """Run the cases that are missing while there is time, and write the results after each."""
    started, before = time.monotonic(), found["seconds"]
    for case in cases:
        row = found["cases"].get(case.name)
        if row is not None and "error" not in row:
            print(f"{case.name}: there already", flush=True)
            continue
        left = minutes * 60 - (time.monotonic() - started)
        if left < (0 if is_tiny else case.seconds):
            found["left_out"][case.name] = f"no time: {max(left, 0):.0f} s of {minutes:g} minutes were left"
        else:
            found["cases"][case.name] = row = row_of(case, is_tiny)
            print(f"{case.name}: {row.get('error') or row.get('check') or row.get('verdict', 'done')}", flush=True)
        found["seconds"] = round(before + time.monotonic() - started, 1)
        results.write(out, found)


def main() -> None:
    """Run it, and say what was left out."""
    on_gpu = torch.cuda.is_available()
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--tiny", action="store_true", help="models of a few kilobytes")
    options.add_argument("--only", nargs="+", choices=[case.name for case in CASES], metavar="NAME", help="these cases alone")
    options.add_argument("--again", action="store_true", help="do not go on with the results that are there")
    options.add_argument(
        "--out", type=Path, help="by default benchmarks/results/gpu.json; runs/gpu.json with --tiny or without a GPU"
    )
    arguments = options.parse_args()
    if not on_gpu and not arguments.tiny:
        raise SystemExit("torch sees no CUDA GPU here; --tiny runs all of it on tiny models.")
    is_committed = arguments.out is None and on_gpu and not arguments.tiny
    out = (arguments.out or (RESULT if is_committed else ROOT / "runs" / "gpu.json")).resolve()
    os.chdir(ROOT)  # where configurations find their files of prompts
    quiet()
    made_by = {"machine": describe_machine(), "device": "cuda" if on_gpu else "cpu", "tiny": arguments.tiny}
    cases, left_out = chosen(arguments.only, arguments.tiny)
    found: dict[str, Any] = {} if arguments.again else results.read_if_there(out)
    if found and any(found.get(key) != value for key, value in made_by.items()):
        raise SystemExit(f"{out} is from {found.get('machine')}, tiny={found.get('tiny')}; give another --out, or --again.")
    found = made_by | {"seconds": found.get("seconds", 0.0), "left_out": left_out, "cases": found.get("cases", {})}
    run(cases, found, out, arguments.minutes, arguments.tiny)
    for name, reason in found["left_out"].items():
        print(f"left out: {name} ({reason})")
    failed = [name for name, row in found["cases"].items() if "error" in row]
    print(f"{len(found['cases']) - len(failed)} cases done, {len(failed)} failed, {len(found['left_out'])} left out: {out}")
    if is_committed:
        fill("performance.md", "on a gpu", text(found))


if __name__ == "__main__":
    main()
