"""The annotated file tree of CONTRIBUTING.md, from the first sentence of every module.

python benchmarks/module_tree.py     # writes it between its markers
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared.command import parser
from benchmarks.shared.pages import put_between
from benchmarks.shared.places import ROOT

BEGIN, END = "<!-- tree of src/rlcm, written by benchmarks/module_tree.py -->", "<!-- end of tree -->"
WIDTH = 125


def tree(folder: Path = ROOT / "src" / "rlcm", indent: str = "") -> Iterator[str]:
    """Yield a line for every folder and module, each with what it is for."""
    files = sorted(folder.glob("*.py"))
    package = next((file for file in files if file.name == "__init__.py"), None)
    yield _line(f"{indent}{folder.name}/", _meaning(package) if package else "")
    modules = [file for file in files if file.name not in ("__init__.py", "__main__.py")]
    for place in sorted([*modules, *(path.parent for path in folder.glob("*/__init__.py"))], key=lambda path: path.stem):
        if place.is_dir():
            yield from tree(place, indent + "  ")
        else:
            yield _line(f"{indent}  {place.name}", _meaning(place))


def section() -> str:
    """Return the tree with its markers."""
    return f"{BEGIN}\n{listing()}\n{END}"


def listing() -> str:
    """Return the tree as Markdown."""
    return "```text\n" + "\n".join(tree()) + "\n```"


def _meaning(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[^.]{3})[.;](?: |$)", first)[0]


def _line(name: str, meaning: str) -> str:
    line = f"{name:<30}{meaning}".rstrip()
    return line if len(line) <= WIDTH else line[: WIDTH - 2].rsplit(" ", 1)[0] + " …"


def main() -> None:
    """Write the tree."""
    parser(__doc__).parse_args()
    put_between(ROOT / "CONTRIBUTING.md", BEGIN, END, listing())


if __name__ == "__main__":
    main()
