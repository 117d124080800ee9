"""The wheel in an empty environment of each Python that is here: does it install, and does the README's Python run?

    python benchmarks/wheels.py [--pythons python3.10 python3.12 ...] [--torch 2.13.0]

Builds the wheel, makes a virtual environment for each interpreter, installs torch and the wheel within constraints.txt (without, where
that has no versions for the Python), and runs the README's first Python with two rounds, from an empty folder. A Python that is not
named keeps its line. Writes benchmarks/results/wheels.json, to which the classifiers of pyproject.toml are held.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import results as files
from benchmarks.shared.command import parser
from benchmarks.shared.places import RESULTS, ROOT
from rlcm.processes.machine import describe_machine

FILE = RESULTS / "wheels.json"
VERSION = "import platform; print(platform.python_version())"


def readme_python() -> str:
    """Return the README's first block of Python, with two rounds in place of its twenty."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    shorter: str = code.replace("rounds=20", "rounds=2")
    assert shorter != code
    return shorter


def tried(python: str, wheel: Path, torch: str, folder: Path) -> dict[str, Any]:
    """Return which Python it is, whether within constraints.txt, and how it ended: "ok", or the last line of what was said."""
    version = subprocess.run([python, "-c", VERSION], check=True, capture_output=True, text=True).stdout.strip()
    found: dict[str, Any] = {"python": version}
    for number, constraints in enumerate((["--constraint", str(ROOT / "constraints.txt")], [])):
        found |= {"constraints": bool(constraints), "ended": _ended(python, wheel, torch, folder / str(number), constraints)}
        if "ResolutionImpossible" not in found["ended"]:  # the constraints have versions for this Python
            break
    return found


def _ended(python: str, wheel: Path, torch: str, folder: Path, constraints: Sequence[str]) -> str:
    own = folder / "environment/bin/python"
    pip = [str(own), "-m", "pip", "install", "--quiet", *constraints]
    steps = {
        "environment": [python, "-m", "venv", str(folder / "environment")],
        "torch": [*pip, f"torch=={torch}"],
        "wheel": [*pip, str(wheel)],
        "README": [str(own), "-c", readme_python()],
    }
    empty = folder / "empty"
    empty.mkdir(parents=True)
    for step, command in steps.items():
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
        if done.returncode:
            return f"{step}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    assert list(empty.glob("runs/*/final/pytorch_lora_weights.safetensors"))
    return "ok"


def main(arguments: Sequence[str] | None = None) -> None:
    """Try all of them and write what came of it."""
    options = parser(__doc__)
    options.add_argument("--pythons", nargs="+", default=[f"python3.{minor}" for minor in (10, 11, 12, 13)])
    options.add_argument("--torch", default="2.13.0")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rlcm-wheels-") as folder:
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT)], check=True, stdout=subprocess.DEVNULL
        )
        wheel = next(Path(folder).glob("*.whl"))
        found = [tried(python, wheel, given.torch, Path(folder, str(number))) for number, python in enumerate(given.pythons)]
    before = files.read(FILE)["tried"] if FILE.exists() else []
    rows = {one["python"]: one for one in [*before, *found]}
    inorder = sorted(rows.values(), key=lambda one: [int(part) for part in one["python"].split(".")])
    files.write(FILE, {"machine": describe_machine(), "torch": given.torch, "tried": inorder})
    print(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
