"""The files and modules of rewards that users write: found, imported, and imported anew where they changed."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from rlcm.errors import ConfigError, MissingFileError
from rlcm.extras import to_install
from rlcm.paths import local
from rlcm.rewards.boundary import UserCode, UserCodeError
from rlcm.rewards.settings import TIMEOUT_SECONDS
from rlcm.rewards.user import AnyReward
from rlcm.runs import digests
from rlcm.runs.again import is_object

_OWN = "rlcm_reward_"
"""How the names of modules begin that were imported as files of their own."""
INSTALLED = {"site-packages", "dist-packages"}
"""Names of the folders of packages."""
_PASS_AGAIN = "pass it again as `rewards=...`: a run goes on by rlcm.Trainer.resume(RUN, rewards=...).train() in Python."


def load_callable(path: str, timeout_seconds: float = TIMEOUT_SECONDS) -> AnyReward:
    """Return the function, class or object that an import path names.

    Args:
        path: `module:name` or `path/to/file.py:name`; a file is imported as a module of its own. A class inside a
            class, or a method of an object, is `module:outer.inner`.
        timeout_seconds: how long the import may take.

    Raises:
        MissingFileError: if the file does not exist.
        ConfigError: if the module cannot be imported or has no such callable; the text says what there is instead.
    """
    place, colon, name = path.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{path!r} is not an import path; write module:function or path/to/file.py:function.")
    bare = name.partition("(")[0]
    if is_object(path) and bare and place.endswith(".py"):  # what programs pass is named by modules
        raise ConfigError(f"{path} is no import path; name the function or class alone, {place}:{bare}, and rlcm calls it.")
    if is_object(path) and place != "__main__":
        raise ConfigError(f"{path} was an object of the program that made it, and cannot be imported; {_PASS_AGAIN}")
    if place.endswith(".py"):
        place = str(local(place, "rewards"))
    _forget_what_changed()
    # A module that this thread is importing at this moment would be waited for in vain by another.
    known = sys.modules.get(place)
    try:
        found = UserCode(place, timeout_seconds).run(lambda: _look_up(place, name, known))
    except UserCodeError as error:
        sys.modules.pop(_module_name(Path(place)), None)  # half of it, where it was given up
        raise ConfigError(f"{place} could not be imported: it {error}.") from error.__cause__
    _note_users_modules(place)
    if not callable(found):
        raise ConfigError(f"{path} is a {type(found).__name__}, not a function; name a function, class or callable object.")
    return found


def _look_up(place: str, name: str, known: ModuleType | None) -> Any:
    """Return what is called `name` in a file or module."""
    module = known or (_import_file(Path(place)) if place.endswith(".py") else _import_module(place))
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError as error:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if place == "__main__":
            raise ConfigError(
                f"{place}:{name}: the program that runs now has no such function; it was one of the program that made the run; "
                f"{_PASS_AGAIN}"
            ) from error
        raise ConfigError(f"{place} has no function {name!r}; {_nearby(name, names, 'it has')}") from error


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{name} could not be imported: it needs the module {error.name!r}; {_remedy(error.name)}"
            ) from error
        files = [path.name for path in Path.cwd().glob("*.py")]
        raise ConfigError(
            f"there is no module {error.name!r} on Python's path; {_nearby(f'{name}.py', files, 'the current folder has')} "
            "A file can be named by its path: path/to/file.py:function."
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):
        folder = path.parent
        files = [file.name for file in folder.glob("*.py")] if folder.is_dir() else []
        raise MissingFileError(f"there is no file {path}; {_nearby(path.name, files, f'{folder} has')}")
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    home = str(path.absolute().parent)
    with contextlib.suppress(OSError):  # most rewards start no processes
        _let_processes_find(name, path.absolute())
    beside = home not in sys.path
    if beside:
        sys.path.insert(0, home)  # as for a script: its neighbours come first
    _make_room_for_neighbours(Path(home))
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        sys.modules.pop(name, None)
        raise ConfigError(f"{path} could not be imported: it needs the module {error.name!r}; {_remedy(error.name)}") from error
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        if beside:
            sys.path.remove(home)
            sys.path.append(home)  # for what it imports later, where it hides nothing that is installed
    return module


@functools.cache
def _for_processes() -> tuple[Path, int]:
    """Return a folder at the end of Python's path, which processes that are started anew (`spawn`) get with it, and its process."""
    folder = tempfile.mkdtemp(prefix="rlcm-rewards-")
    sys.path.append(folder)
    atexit.register(clean_up)
    return Path(folder), os.getpid()


def clean_up() -> None:
    """Delete the folder that this process has made for those that its rewards start."""
    if _for_processes.cache_info().currsize:
        folder, owner = _for_processes()
        if owner == os.getpid():  # and not a copy of it
            shutil.rmtree(folder, ignore_errors=True)


def _let_processes_find(name: str, path: Path) -> None:
    """Let the processes that a reward starts find the module of its file by its name, as unpickling its functions does."""
    text = f"""import importlib.util, sys
sys.path.insert(0, {str(path.parent)!r})
spec = importlib.util.spec_from_file_location({name!r}, {str(path)!r})
module = sys.modules[{name!r}] = importlib.util.module_from_spec(spec)
try:
    spec.loader.exec_module(module)
finally:
    sys.path.remove({str(path.parent)!r})
    sys.path.append({str(path.parent)!r})
"""
    (_for_processes()[0] / f"{name}.py").write_text(text, encoding="utf-8")


_READ: dict[str, tuple[str, str]] = {}
"""Files of users' modules by the modules' names, and digests of what was in them when they were imported."""


def _note_users_modules(place: str) -> None:
    """Take note of what is in the file of a reward, and in those beside it, once it was imported."""
    main = place if place.endswith(".py") else _file_of(sys.modules.get(place))
    if main is None or is_installed(Path(main)):
        return
    home = Path(main).absolute().parent
    for name, module in list(sys.modules.items()):
        file = _file_of(module)
        if file and name != "__main__" and name not in _READ and Path(file).absolute().parent == home:
            _READ[name] = (file, _content(file))


def _forget_what_changed() -> None:
    """Forget all users' modules if the file of one of them holds something else now, so that they are imported anew.

    What ran would not be what stands in the files, whose digests a run notes. Whoever has imported a module keeps the old one.
    """
    if any(_content(file) != content for file, content in _READ.values()):
        importlib.invalidate_caches()
        for name, (file, _) in _READ.items():
            sys.modules.pop(name, None)
            with contextlib.suppress(OSError):  # it knows a file by its second and its size only
                os.unlink(importlib.util.cache_from_source(file))
        _READ.clear()


def _file_of(module: Any) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) and file.endswith(".py") else None


def _content(file: str) -> str:
    """Return the digest of a file; nothing of one that is gone."""
    try:
        return digests.of_file(Path(file))
    except OSError:
        return ""


def _make_room_for_neighbours(home: Path) -> None:
    """Forget modules that have the name of a file in a folder and are another folder's: of a second project in one process.

    Whoever has imported them keeps them. What is installed stays.
    """
    for file in home.glob("*.py"):
        other = getattr(sys.modules.get(file.stem), "__file__", None)
        if other and not is_installed(Path(other)) and Path(other).resolve() != file.resolve():
            del sys.modules[file.stem]


def is_installed(file: Path) -> bool:
    """Return whether a file of Python is no user's own, but of a package, of Python itself or of this one."""
    own = {Path(sysconfig.get_path("stdlib")).resolve(), Path(__file__).resolve().parents[1]}
    return bool(INSTALLED & set(file.parts) or own & set(file.resolve().parents))


def _module_name(path: Path) -> str:
    """Return a name of its own for a file, so that files of the same name in two folders do not replace each other."""
    return f"{_OWN}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"


def _remedy(module: str | None) -> str:
    extra = {"httpx": "remote", "fastapi": "serve", "uvicorn": "serve", "imscore": "imscore", "rapidocr": "ocr"}.get(
        module or ""
    )
    return f"install it with: {to_install(extra)}" if extra else "install it, or correct the import."


def _nearby(name: str, known: Iterable[str], lead: str) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{lead} {', '.join(known[:20]) or 'none'}."
