"""Run the fast tests with the lowest and with the newest versions of the dependencies, each in an environment of its own.

    python benchmarks/versions.py                 # or: make versions
    python benchmarks/versions.py lowest          # one of the two
    python benchmarks/versions.py newest --torch 2.13.0

`lowest` pins every dependency that pyproject.toml names to the version it says is enough; what they need in turn is left to
pip. `newest` takes what the package index has today. The tools that test (pytest, hypothesis and such) are the pinned ones of
constraints.txt as far as the rest allows it. Writes benchmarks/results/versions.json. Needs only Python to start, about 16 GB
of disk while it runs where torch comes with CUDA, and half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
KINDS = ("lowest", "newest")
TESTED_EXTRAS = ("serve", "remote")
"""Extras whose packages the tests import."""
TOOLS = ("hypothesis", "nbclient", "ipykernel", "pytest", "pytest-xdist", "hatchling", "schemathesis")
"""What the tests need besides; gradio, which wants newer packages than the rest, stays out, and so do the tests
of `rlcm ui` and of the documentation."""
FLOOR = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[\w,-]+\])?>=([\w.]+)$")


def floors(project: dict[str, Any]) -> dict[str, str]:
    """Return the lowest version of every dependency, of the package and of the extras that the tests import.

    Raises:
        ValueError: if an entry is not of the form name>=version.
    """
    extras = project["optional-dependencies"]
    entries = project["dependencies"] + [entry for name in TESTED_EXTRAS for entry in extras.get(name, ())]
    found = {}
    for entry in entries:
        match = FLOOR.match(entry.replace(" ", ""))
        if match is None:
            raise ValueError(f"pyproject.toml: {entry!r} is not of the form name>=version.")
        found[match[1].lower()] = match[2]
    return found


def install(kind: str, folder: Path, torch: str | None) -> Path:
    """Make an environment with the package in it and return its interpreter."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    named = floors(read_project())
    pins = {"lowest": named, "newest": {}}[kind] | ({"torch": torch} if torch else {})
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    subprocess.run([*pip, f"torch=={pins['torch']}" if "torch" in pins else "torch"], check=True)
    wanted = f"{ROOT}[{','.join(TESTED_EXTRAS)}]"
    strategy = "eager" if kind == "newest" else "only-if-needed"
    subprocess.run([*pip, "--upgrade", "--upgrade-strategy", strategy, "--editable", wanted, *TOOLS], check=True)
    return python


def test(python: Path, scratch: Path, marker: str) -> dict[str, Any]:
    """Run the tests and return their numbers, and the names of those that failed."""
    report = scratch / "tests.xml"
    started = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = f"{python.parent}{os.pathsep}{environment.get('PATH', '')}"  # some tests call the tools by name
    command = [
        str(python),
        "-m",
        "pytest",
        "-m",
        marker,
        f"--junitxml={report}",
        "-p",
        "no:cacheprovider",
        "--ignore=tests/ui",
        "--ignore=tests/project/test_docs.py",
        "--deselect=tests/project/test_packaging.py::test_the_floors_are_those_that_were_tested",  # it reads what is written here
        "-n",
        "2",
        "--dist",
        "loadfile",
    ]
    subprocess.run(command, cwd=ROOT, check=False, env=environment | {"PATH": path, "OMP_NUM_THREADS": "1"})
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases
              if case.find("failure") is not None or case.find("error") is not None]  # fmt: skip
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failed) - skipped,
        "failed": failed,
        "skipped": skipped,
        "seconds": round(time.monotonic() - started),
    }


def versions(python: Path) -> dict[str, str]:
    """Return the installed versions of the dependencies, and of Python."""
    names = ["python", *floors(read_project())]
    code = (
        "import json, platform, sys\nfrom importlib.metadata import version\n"
        "print(json.dumps({n: platform.python_version() if n == 'python' else version(n) for n in sys.argv[1:]}))"
    )
    return json.loads(subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True, text=True).stdout)


def read_project() -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def main() -> int:
    """Test, write the results and return 0 if everything passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="lowest|newest", help="default both")
    parser.add_argument("--torch", help="this version of torch, whatever the kind")
    parser.add_argument("--marker", default="not slow", help="which tests, as pytest's -m; default: 'not slow'")
    parser.add_argument("--work", type=Path, help="keep the environments in this folder; default: a temporary one")
    arguments = parser.parse_args()
    kinds = arguments.kinds or KINDS
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"{unknown[0]!r} is neither lowest nor newest")
    work = arguments.work or Path(tempfile.mkdtemp(prefix="rlcm-versions-"))
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    try:
        for kind in kinds:
            python = install(kind, work / kind, arguments.torch)
            found[kind] = {"date": date.today().isoformat(), "versions": versions(python)} | test(
                python, work, arguments.marker
            )
            RESULTS.write_text(json.dumps({name: found[name] for name in KINDS if name in found}, indent=2) + "\n")
            print(f"{kind}: {found[kind]['passed']} passed, {len(found[kind]['failed'])} failed", flush=True)
            if arguments.work is None:
                shutil.rmtree(work / kind)
    finally:
        if arguments.work is None:
            shutil.rmtree(work, ignore_errors=True)
    return int(any(found[kind]["failed"] for kind in kinds))


if __name__ == "__main__":
    sys.exit(main())
