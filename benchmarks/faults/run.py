"""Faults, injected one by one into a small run, and what came of each.

    python benchmarks/faults/run.py [--only NAME ...]

Every case is a command in a process of its own (forked, so that libraries are loaded once) into which one fault is put. Then
the run goes on by `rlcm train --resume RUN` without the fault, where there is a run, and its tuned LoRA is compared with that
of a run that nobody disturbed. Disk cases use a tmpfs of a few kB in a mount namespace of their own, and are left out where
the system forbids that.

Writes benchmarks/results/faults.json and the table in docs/reliability.md.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.faults.cases import CASES, Case, Fault, all_flipped, around, nothing, own_signal
from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.network import free_port
from benchmarks.shared.pages import fill
from benchmarks.shared.places import RESULTS
from rlcm.cli import commands as cli
from rlcm.processes.machine import describe_machine
from rlcm.training import keeping
from rlcm.tuning.saying import quiet

RESULT = RESULTS / "faults.json"
LONGEST = 60.0
"""Seconds after which a case counts as a hang."""
SETTINGS = [
    "name=run",
    "sampler.steps=2",
    "rollout.batch_size=4",
    "rollout.branches=1",
    "algorithm.kl_coefficient=0",
    "rollout.branches=2",
    "algorithm.stat_buffer_size=8",
    "algorithm.stat_min_count=2",
    "evaluation.images=4",
    "evaluation.grid=4",
    "run.rounds=3",
    "run.save_every=1",
    "run.tracker=none",
]


def play(arguments: list[str], log: Path, fault: Fault = nothing, environment: dict[str, str] | None = None) -> int:
    """Fork a process that runs `rlcm` with the arguments, and return its id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment or {})
        sys.argv = ["rlcm", *arguments]
        fault()
        cli.main(arguments, prog_name="rlcm", standalone_mode=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def finish(processes: list[int], started: float) -> list[int | None]:
    """Return the exit codes of processes, None where one had to be killed after a minute and a half.

    Once one has failed, the others are treated as torchrun does: SIGTERM, and SIGKILL half a minute later.
    """
    codes: dict[int, int | None] = {}
    failed = float("inf")
    while len(codes) < len(processes):
        for process in set(processes) - set(codes):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                codes[process] = os.waitstatus_to_exitcode(status)
                if codes[process] != 0 and failed == float("inf"):
                    failed = time.monotonic()
                    for other in set(processes) - set(codes):
                        os.kill(other, signal.SIGTERM)
            elif time.monotonic() - failed > 30:
                os.kill(process, signal.SIGKILL)
            elif time.monotonic() - started > 1.5 * LONGEST:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                codes[process] = None
        time.sleep(0.05)
    return [codes[process] for process in processes]


def mount(where: Path, options: str, again: bool = False) -> None:
    """Mount a tmpfs, in a namespace of this process.

    Raises:
        OSError: if the system forbids it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    namespace, user, remount, readonly = 0x20000, 0x10000000, 32, 1
    if not again:
        if os.geteuid() != 0:
            outside = os.getuid(), os.getgid()
            if libc.unshare(namespace | user):
                raise OSError(ctypes.get_errno(), "unshare")
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {outside[0]} 1")
            Path("/proc/self/gid_map").write_text(f"0 {outside[1]} 1")
        elif libc.unshare(namespace):
            raise OSError(ctypes.get_errno(), "unshare")
        libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # private, so that nothing is seen outside
    flags = (remount if again else 0) | (readonly if options == "read-only" else 0)
    data = b"" if options == "read-only" else options.encode()
    if libc.mount(b"tmpfs", str(where).encode(), b"tmpfs", flags, data):
        raise OSError(ctypes.get_errno(), "mount")


WORDS = (
    r"error: .*",
    r"stopped after round \d+; go on with: rlcm train --resume \S+",
    r"out of memory \(.*the results stay the same",
    r"checkpoint-\d+ is damaged .*? instead",
    r"going on after round \d+ of \d+",
)


def last_words(log: str) -> str:
    """Return the error, or what else of note a user reads."""
    text = re.sub(r"\s+", " ", log.strip())
    for pattern in WORDS:
        if found := re.findall(pattern, text):
            return str(found[-1]).removeprefix("error: ").strip()
    return "finishes" if "LoRA" in text else "nothing of note"


def examine(case: Case, work: Path, undisturbed: Path) -> dict[str, Any]:
    """Play a case and return its row."""
    output = work / "output"
    output.mkdir()
    if case.disk:
        mount(output, case.disk)
    run, log = output / "run", work / "log"
    command = ["train", *SETTINGS, f"output={output}", *case.settings]
    if case.before is not None:
        finish(
            [play([*command, "run.rounds=3"], log, around(keeping, "save_final", 1, own_signal(signal.SIGKILL)))],
            time.monotonic(),
        )
        case.before(run)
        command = ["train", "--resume", str(run)]
        log = work / "second.log"
    port = str(free_port())
    environments = [
        {
            "RANK": str(r),
            "WORLD_SIZE": str(case.processes),
            "LOCAL_RANK": str(r),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for r in range(case.processes)
    ]
    started = time.monotonic()
    alone = case.processes == 1
    logs = [log] if alone else [work / f"log-{rank}" for rank in range(case.processes)]
    codes = finish([play(command, file, case.fault, None if alone else environment)
                    for file, environment in zip(logs, environments, strict=True)], started)  # fmt: skip
    seconds = time.monotonic() - started
    texts = [file.read_text() if file.exists() else "" for file in logs]
    if case.disk:
        shutil.copytree(output, work / "rescued", dirs_exist_ok=True)
        output, run = work / "rescued", work / "rescued" / "run"
    row: dict[str, Any] = {
        "fault": case.name,
        "exit_codes": codes,
        "seconds": round(seconds, 1),
        "words": [last_words(text).replace(str(work), "").replace("/output/", "") for text in texts],
        "traceback": any("Traceback" in text for text in texts),
    }
    begun = (run / "config.yaml").exists()
    again = ["train", "--resume", str(run)] if begun else ["train", *SETTINGS, f"output={output}", *case.settings]
    row["then"] = "rlcm train --resume RUN" if begun else "the same command"
    more = work / "again.log"
    row["then_exit_code"] = finish([play(again, more)], time.monotonic())[0]
    final = run / "final" / "pytorch_lora_weights.safetensors"
    if final.exists():
        one, other = load_file(final), load_file(undisturbed)
        row["same_bytes"] = final.read_bytes() == undisturbed.read_bytes()
        row["largest_difference"] = max(float((value - other[name]).abs().max()) for name, value in one.items())
    else:
        row["same_bytes"], row["then_words"] = False, last_words(more.read_text()).replace(str(work), "")
    row["passed"] = passes(case, row)
    return row


def passes(case: Case, row: dict[str, Any]) -> bool:
    """Return whether a case came out as it should: in time, with words, and with nothing lost."""
    first = row["exit_codes"][0]
    lost_all = case.before is all_flipped
    spoilt = "NaN" in case.name and "gradient" in case.name
    kept = row["same_bytes"] if case.same else row.get("largest_difference", 1.0) < 1e-4
    bug = "bug" in case.name  # a bug shows its traceback, and nothing else does
    return (
        first in case.expected
        and row["seconds"] < LONGEST
        and (bug or not row["traceback"])
        and bool(row["words"][0])
        and (lost_all or spoilt or (kept and row["then_exit_code"] == 0))
    )


def in_own_process(case: Case, undisturbed: Path) -> dict[str, Any]:
    """Play a case in a process of its own, which may mount what it likes."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        process = os.fork()
        if not process:
            try:
                row = examine(case, work, undisturbed)
            except OSError as error:
                row = {"fault": case.name, "skipped": str(error), "passed": False}
            (work / "row.json").write_text(json.dumps(row))
            os._exit(0)
        os.waitpid(process, 0)
        file = work / "row.json"
        return (
            json.loads(file.read_text())
            if file.exists()
            else {"fault": case.name, "skipped": "the case broke", "passed": False}
        )


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = ["| fault | exit code | what the user reads | then | tuned LoRA |", "|---|---|---|---|---|"]
    for row in rows:
        if "skipped" in row:
            continue
        words = row["words"][0].replace("|", "\\|")
        lora = "same bytes" if row["same_bytes"] else "none" if "largest_difference" not in row else (
            f"off by {row['largest_difference']:.0e}")  # fmt: skip
        codes = ", ".join("killed by a signal" if code is not None and code < 0 else str(code) for code in row["exit_codes"])
        lines.append(f"| {row['fault']} | {codes} | {words[:260]} | {row['then']}: {row['then_exit_code']} | {lora} |")
    return "\n".join(lines)


def main() -> None:
    """Play all cases and write what came of them."""
    options = parser(__doc__)
    options.add_argument("--only", nargs="*", default=[], help="Cases whose names contain one of these.")
    arguments = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    quiet()
    before = results.read(RESULT)["cases"] if RESULT.exists() and arguments.only else []
    rows = {row["fault"]: row for row in before}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        if finish([play(["train", *SETTINGS, f"output={folder}"], log)], time.monotonic()) != [0]:
            raise SystemExit(log.read_text())
        undisturbed = Path(folder) / "run" / "final" / "pytorch_lora_weights.safetensors"
        for case in CASES:
            if arguments.only and not any(text in case.name for text in arguments.only):
                continue
            rows[case.name] = in_own_process(case, undisturbed)
            print("ok    " if rows[case.name]["passed"] else "WRONG ", json.dumps(rows[case.name]), flush=True)
    ordered = [rows[case.name] for case in CASES if case.name in rows]
    results.write(RESULT, {"machine": describe_machine(), "cases": ordered})
    fill("reliability.md", "faults", table(ordered) + f"\n\nMachine: {describe_machine()}.")
    print(f"{sum(row['passed'] for row in ordered)} of {len(ordered)} as they should be")


if __name__ == "__main__":
    main()
