"""The table of benchmarks/README.md: every script with its command, every file of results, and no page that is not there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import Script, scripts

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
TABLE = TEXT.split("\n\n## ")[0]
ROWS = [line.strip("| ").split(" | ") for line in TABLE.splitlines() if line.startswith("| [")]
SCRIPTS = scripts()


def name(script: Script) -> str:
    """Return a script's path as the table has it."""
    return script.file.relative_to(FOLDER).as_posix()


def test_the_table_has_every_script_as_its_docstring_tells_it() -> None:
    told = {row[0]: (row[1], row[-1]) for row in ROWS}
    assert len(told) == len(ROWS)
    assert told == {f"[{name(s)}]({name(s)})": (s.about, f"`{s.command}`") for s in SCRIPTS}


def test_whatever_can_be_called_is_a_script() -> None:
    callable_files = {
        file.relative_to(FOLDER).as_posix()
        for file in FOLDER.rglob("*.py")
        if 'if __name__ == "__main__"' in file.read_text(encoding="utf-8") and file.name != "__main__.py"
    }
    assert callable_files == {name(script) for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_command_calls_its_own_script(script: Script) -> None:
    words = script.command.split()
    if words[1] != "-m":
        assert words[1] == f"benchmarks/{name(script)}"
    elif (package := ROOT.joinpath(*words[2].split("."))).is_dir():
        module = ".".join(script.file.relative_to(ROOT).with_suffix("").parts)
        assert f"from {module} import main" in (package / "__main__.py").read_text(encoding="utf-8")
    else:
        assert package.with_suffix(".py") == script.file


def test_the_table_has_every_file_of_results() -> None:
    there = {f"results/{file.name}" for file in (FOLDER / "results").glob("*.json")}
    assert set(re.findall(r"\((results/[\w.-]+\.json)\)", TABLE)) == there


def test_what_it_links_is_there() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert [target for target in targets if not (FOLDER / target).exists()] == []


def test_the_list_has_every_command() -> None:
    found = subprocess.run([sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert [line for line in found.stdout.splitlines() if line.startswith("python ")] == [s.command for s in SCRIPTS]


def test_the_scripts_that_are_named_anywhere_are_there() -> None:
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]
    files += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py"), *FOLDER.rglob("*.py"), *FOLDER.rglob("*.json")]
    named = {path for file in files for path in re.findall(r"\bbenchmarks/[\w/]+\.py\b", file.read_text(encoding="utf-8"))}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
