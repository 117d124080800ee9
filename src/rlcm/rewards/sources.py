"""What code a reward of a user's is made of: its own text, its file, and the files beside it that this one imports."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rlcm.errors import ConfigError
from rlcm.paths import local
from rlcm.rewards.imported import is_installed


def own_text(reward: Callable[..., Any]) -> str | None:
    """Return the source of the function or class that a reward is; None for one of the package, and where there is no source."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    reward = inspect.unwrap(reward)
    found = reward if inspect.isroutine(reward) or inspect.isclass(reward) else type(reward)
    if (getattr(found, "__module__", None) or "").partition(".")[0] == "rlcm":
        return None
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):
        return None


def own_files(place: str) -> dict[str, Path]:
    """Return the files of a reward that is named by a path, by their names in its folder, its own first.

    Args:
        place: `path/to/file.py:name` or `module:name`, after it was loaded. Other names, and modules that are installed, have no
            files of the user's.
    """
    module, colon, _ = place.rpartition(":")
    if not colon or module.partition(".")[0] == "rlcm":
        return {}
    named = module if module.endswith(".py") else getattr(sys.modules.get(module), "__file__", None) or ""
    file = local(named, "rewards").absolute()
    if file.suffix != ".py" or not file.is_file() or is_installed(file):
        return {}
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    found, waiting = {str(file.relative_to(folder)): file}, [file]
    while waiting:
        for near in _imported(waiting.pop(), folder):
            name = str(near.relative_to(folder))
            if name not in found:
                found[name] = near
                waiting.append(near)
    return found


def check_neighbours(places: Iterable[str]) -> None:
    """Refuse rewards whose files import neighbours of a name that another one's neighbour, or something installed, has, too.

    Args:
        places: of the rewards of one mix, as for `own_files`.

    Raises:
        ConfigError: if there is one: it would get the other.
    """
    known: dict[str, Path] = {}
    for place in places:
        for name, file in list(own_files(place).items())[1:]:
            if name != file.name:  # in a package, whose name comes first
                continue
            loaded = getattr(sys.modules.get(file.stem), "__file__", None)
            other = Path(loaded) if loaded and is_installed(Path(loaded)) else known.setdefault(file.stem, file)
            if other != file:
                raise ConfigError(
                    f"{place} imports {file.stem}, which is {file}, but Python has another module of this name: {other}. "
                    "Rename one of them."
                )


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that a file of Python imports, wherever in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots = [(folder, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder if not node.level else file.parents[min(node.level, len(file.parents)) - 1]
            roots = [(base, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names]
            roots += [(base, node.module)] if node.module else []
        elif isinstance(node, ast.Call) and (named := _imported_by_name(node)):
            roots = [(folder, named)]
        else:
            continue
        for base, dotted in roots:
            parts = [part for part in dotted.split(".") if part != "*"]
            for end in range(1, len(parts) + 1):
                place = base.joinpath(*parts[:end])
                for candidate in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                    if candidate.is_relative_to(folder) and candidate.is_file():
                        yield candidate


def _imported_by_name(call: ast.Call) -> str:
    """Return the module that `__import__("x")` or `importlib.import_module("x")` names; empty for other calls."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    value = first.value if isinstance(first, ast.Constant) else None
    return value if name in ("__import__", "import_module") and isinstance(value, str) else ""
