"""Lists the scripts of this folder: what each is for, and how it is called.

python -m benchmarks
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
COMMAND = re.compile(r"(?m)^ *(python (?:benchmarks/|-m benchmarks\.).*?)(?:  .*)?$")


class Script(NamedTuple):
    """A file that is called."""

    file: Path
    about: str
    """The first paragraph of its docstring."""
    command: str
    """The first command that its docstring shows."""


def scripts(folder: Path = HERE) -> list[Script]:
    """Return the files whose docstrings show how they are called."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")), clean=False) or ""
        if shown := COMMAND.search(text):
            found.append(Script(file, " ".join(text.partition("\n\n")[0].split()), shown[1]))
    return found


def main() -> None:
    """Print them."""
    for script in scripts():
        print(f"{script.command}\n    {script.about}\n")
    print("README.md beside them says which page each of them makes, from which results, and how long it takes.")


if __name__ == "__main__":
    main()
