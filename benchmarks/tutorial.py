"""The tutorial as typed: runs the blocks of docs/tutorial.md in order and writes what they print, and how long it took, into the page.

    python benchmarks/tutorial.py [--folder runs/tutorial]

Every bash line and every Python block is a process of its own. Writes docs/tutorial.md, benchmarks/results/tutorial.json and
docs/images/tutorial-*.png. `tests/project/test_tutorial.py` runs the same blocks with fewer rounds.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.pages import replaced
from benchmarks.shared.places import DOCS, IMAGES, RESULTS
from rlcm.processes.machine import describe_machine
from rlcm.report import before_after_picture, curve_picture, read_run

PAGE = DOCS / "tutorial.md"
NOT_RUN = "<!-- not run"
BLOCK = re.compile(
    r"(?ms)^(?P<note><!--[^\n]*-->\n)?```(?P<language>bash|python)(?: title=\"(?P<file>[^\"]+)\")?\n(?P<code>.*?)^```$"
    r"(?P<between>\n\n```text\n)?"
)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the page that is run or written to a file."""

    language: str
    code: str
    file: str | None
    """The file that the reader saves it as."""
    answer: tuple[int, int] | None
    """Where the page says what it prints."""


def blocks(page: str) -> Iterator[Block]:
    """Yield the bash and Python blocks of a page, but for those under a comment that says that they are not run."""
    for match in BLOCK.finditer(page):
        if (match["note"] or "").startswith(NOT_RUN):
            continue
        end = page.index("```", match.end()) if match["between"] else 0
        yield Block(match["language"], match["code"], match["file"], (match.end(), end) if match["between"] else None)


def run(block: Block, folder: Path) -> str:
    """Run a block in a folder and return what it printed: of the progress, which goes to stderr, the last line."""
    if block.file:
        (folder / block.file).write_text(block.code, encoding="utf-8")
        return ""
    said = ""
    lines = [block.code] if block.language == "python" else block.code.splitlines()
    for line in lines:
        words = ["-c", line] if block.language == "python" else ["-m", *shlex.split(line, comments=True)]
        print(line, flush=True)
        answer = subprocess.run(
            [sys.executable, *words], cwd=folder, capture_output=True, text=True, env=os.environ | {"COLUMNS": "104"}
        )
        if answer.returncode:
            raise SystemExit(f"{line}\n{answer.stdout}{answer.stderr}")
        rounds = re.findall(r"round \d+/\d+ .*", answer.stderr)
        said += "".join(f"{text.rstrip()}\n" for text in [*rounds[-1:], *answer.stdout.splitlines()])
    return said


def time_of(found: dict[str, Any]) -> str:
    """Return the page's sentence on how long it took."""
    return (
        f"All commands of this page together took {found['wall_seconds'] / 60:.1f} minutes "
        f"({found['cpu_seconds'] / 60:.1f} minutes of computing, added up over the cores)\non a machine that did other work, too "
        f"(load {found['load_average']:.0f} on {found['cores']} cores), and "
        f"{found['peak_memory_mb'] / 1000:.1f} GB of memory.\nMachine: {found['machine']}."
    )


def main() -> None:
    """Run the page and write its answers into it."""
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, default=Path("runs/tutorial"))
    folder = options.parse_args().folder
    folder.mkdir(parents=True)
    page = PAGE.read_text(encoding="utf-8")
    started = time.perf_counter()
    answers = [(block, run(block, folder)) for block in blocks(page)]
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    for block, said in reversed(answers):
        if block.answer:
            page = f"{page[: block.answer[0]]}{said}{page[block.answer[1] :]}"
    found = {
        "machine": describe_machine(),
        "load_average": os.getloadavg()[2],
        "cores": os.cpu_count(),
        "wall_seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_mb": used.ru_maxrss / 1024,
        "evaluations": json.loads((folder / "runs/spotlight/eval.json").read_text())["evaluations"],
    }
    PAGE.write_text(replaced(page, "<!-- time -->", "<!-- /time -->", time_of(found)), encoding="utf-8")
    results.write(RESULTS / "tutorial.json", found, indent=1)
    tuned = folder / "runs" / "spotlight"
    curve_picture(read_run(tuned), IMAGES / "tutorial-curve.png")
    with Image.open(before_after_picture(tuned, IMAGES / "tutorial-before-after.png")) as picture:
        small = picture.convert("RGB").quantize(200, dither=Image.Dither.NONE)
    small.save(IMAGES / "tutorial-before-after.png", optimize=True)


if __name__ == "__main__":
    main()
