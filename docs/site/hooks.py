"""What the site does beyond MkDocs: the README as its front page, the repository's files beside it, and no build with a public
name that nobody documented.

`undocumented` and `missing_from_site` are what `tests/project/test_docs.py` calls, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
README_GOES_HERE = "The front page of the site is the [README](../README.md)."
LINK = re.compile(r"(?:\[([^\[\]]*))?\]\(([^)\s:]+)\)")
"""Text and target of a link within the repository; no text where it holds a picture."""
DIRECTIVE = re.compile(r"(?m)^::: (\S+)$")


# The files of the repository


def on_files(files: Any, config: Any) -> Any:
    """Put what pages link to outside docs/ on the site, under files/: Markdown as pages, everything else as it is."""
    waiting = [README, *(Path(file.abs_src_path) for file in files.documentation_pages())]
    seen = {README}
    while waiting:
        page = waiting.pop()
        for target in _targets(page.read_text(encoding="utf-8"), page.parent):
            if target in seen or DOCS in target.parents or not target.is_file():
                continue
            seen.add(target)
            place = _place(target)
            files.append(File.generated(config, place, abs_src_path=str(target), inclusion=InclusionLevel.NOT_IN_NAV))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page with its links led to where their targets are on the site, and the README where it is wanted."""
    here = PurePosixPath(page.file.src_uri)
    before, wanted, after = (
        _led(part, Path(page.file.abs_src_path).parent, here) for part in markdown.partition(README_GOES_HERE)
    )
    return before + (_led(README.read_text(encoding="utf-8"), ROOT, here) if wanted else "") + after


def on_page_content(html: str, **_: Any) -> str:
    """Return a page without the backslash that a bar needs inside a table's code on GitHub."""
    return re.sub(r"<code>[^<]*</code>", lambda code: code[0].replace("\\|", "|"), html)


def _led(text: str, folder: Path, here: PurePosixPath) -> str:
    """Return a text from `folder` with its relative links as seen from `here` on the site."""

    def lead(match: re.Match[str]) -> str:
        path, hash_sign, anchor = match[2].partition("#")
        target = (folder / path).resolve()
        if not path or ROOT not in target.parents or not target.exists():
            return match[0]  # MkDocs says what is wrong with it
        if target.is_dir():
            target /= "README.md"
            if not target.is_file() and match[1]:
                return match[1]  # a folder is a page on GitHub only
        text = "" if match[1] is None else f"[{match[1]}"
        return f"{text}]({os.path.relpath(_place(target), here.parent)}{hash_sign}{anchor})"

    return LINK.sub(lead, text)


def _targets(text: str, folder: Path) -> Iterator[Path]:
    for match in LINK.finditer(text):
        target = (folder / match[2].partition("#")[0]).resolve()
        if ROOT in target.parents:
            yield target


def _place(target: Path) -> str:
    """Return where a file of the repository is on the site, as the source of a page."""
    if target == README:
        return "index.md"
    inside = DOCS in target.parents
    return target.relative_to(DOCS).as_posix() if inside else f"files/{target.relative_to(ROOT).as_posix()}"


# The public names


def on_pre_build(config: Any) -> None:
    """Stop the build where a public name has no docstring."""
    if names := undocumented(load_package(ROOT / "src" / "rlcm"), published()):
        raise PluginError("these public names have no docstring:\n  " + "\n  ".join(names))


def on_post_build(config: Any) -> None:
    """Stop the build where a public name of the API pages did not get onto them."""
    inventory = config.plugins["mkdocstrings"].handlers.inventory
    if names := missing_from_site(load_package(ROOT / "src" / "rlcm"), published(), inventory):
        raise PluginError("these public names are on no page of docs/api:\n  " + "\n  ".join(names))


def published(folder: Path = DOCS / "api") -> list[str]:
    """Return the names of the modules, classes and functions that pages in a folder show: the public API."""
    pages = [page.read_text(encoding="utf-8") for page in sorted(folder.glob("*.md"))]
    return [name for page in pages for name in DIRECTIVE.findall(page)]


def load_package(folder: Path) -> griffe.Module:
    """Return what a package's source says, without importing it."""
    package = griffe.load(folder.name, search_paths=[str(folder.parent)], resolve_aliases=True)
    assert isinstance(package, griffe.Module)
    return package


def undocumented(package: griffe.Module, public: Iterable[str]) -> list[str]:
    """Return the names without a docstring that must have one.

    That is every module, class, function, method and settings field of the package whose name has no underscore in front, and
    every attribute of what is public. A method may have the docstring of the method that it overrides.
    """
    names = {object_.path for object_ in _walk(package) if not object_.is_attribute or _is_settings_field(object_)}
    names |= {object_.path for object_ in published_objects(package, public)}
    prefix = f"{package.name}."
    found = [package[name.removeprefix(prefix)] if name != package.name else package for name in sorted(names)]
    return [object_.path for object_ in found if not _has_docstring(object_)]


def missing_from_site(package: griffe.Module, public: Iterable[str], inventory: Iterable[str]) -> list[str]:
    """Return the public names that an inventory of a site lacks."""
    there = set(inventory)
    return sorted({object_.path for object_ in published_objects(package, public)} - there)


def published_objects(package: griffe.Module, public: Iterable[str]) -> Iterator[Any]:
    """Yield the objects that public names stand for, with what is in them; of a module with `__all__` those that it lists."""
    for name in public:
        object_ = package[name.removeprefix(f"{package.name}.")] if name != package.name else package
        object_ = object_.final_target if object_.is_alias else object_
        if object_.is_module and object_.exports:
            for exported in map(str, object_.exports):
                member = object_.members[exported]
                yield from _walk(member.final_target if member.is_alias else member)
        else:
            yield from _walk(object_)


def _walk(object_: Any) -> Iterator[Any]:
    """Yield an object and the public objects in it, imported ones left out."""
    yield object_
    if not (object_.is_module or object_.is_class):
        return
    for name, member in object_.members.items():
        if name.startswith("_") or member.is_alias or _is_machinery(member):
            continue
        yield from _walk(member)


def _is_machinery(object_: Any) -> bool:
    """Return whether an attribute is a type variable, a logger, pydantic's configuration or set in a method."""
    if not object_.is_attribute:
        return False
    at_class_level = {"class-attribute", "property"} & object_.labels or object_.value is None
    is_set_in_method = object_.parent.is_class and not at_class_level
    return str(object_.value).startswith(("TypeVar(", "logging.getLogger(", "ConfigDict(")) or is_set_in_method


def _is_settings_field(object_: Any) -> bool:
    parent = object_.parent
    return parent.is_class and object_.annotation is not None and any(base.name == "Settings" for base in parent.mro())


def _has_docstring(object_: Any) -> bool:
    if object_.has_docstring:
        return True
    parent = object_.parent
    if not (parent and parent.is_class):
        return False
    bases = [base for base in parent.mro() if object_.name in base.members]
    return any(base.members[object_.name].has_docstring for base in bases)
