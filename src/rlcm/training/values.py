"""The values of settings before they are checked: read from a YAML file, changed by `key=value`, and typed again in remedies."""

from __future__ import annotations

import copy
import difflib
import itertools
import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_origin

from rlcm.errors import ConfigError, MissingFileError
from rlcm.lookalikes import QUOTES, keyboard, named, straight, torn, unquoted, visible
from rlcm.runs.again import going_on, repeated
from rlcm.runs.files import why_no_file
from rlcm.settings import Settings, alternatives, declared, is_group, is_place, leaves
from rlcm.text_files import read_text
from rlcm.training.translation import assignments, in_a_file
from rlcm.yaml_text import Written, meant, read_yaml, write_yaml

SAVE_IT = "save what it should hold as a file,"
"""What to do about a pipe, which can be read once only, and by one process."""
NOTHING = ("null", "Null", "NULL", "~")
"""How an optional text is left out."""


def assignment(key: str, value: Any) -> str:
    """Return a setting with a value as it is typed on the command line of a POSIX shell."""
    return f"{key}={shlex.quote(value if isinstance(value, str) else write_yaml(value, flow=True))}"


def read_file(path: Path, kind: type[Settings]) -> dict[str, Any]:
    """Return the nested values of a YAML file, unquoted scalars as `Written`.

    Args:
        kind: the settings of which the file holds some.

    Raises:
        MissingFileError: if the file is not there.
        ConfigError: if it is no YAML mapping, or has a key twice.
    """
    names = [name for name, _ in leaves(kind)]
    if why := why_no_file(path):
        raise MissingFileError(f"config={str(path)!r} {_instead(path, names, why)}")
    text = ""
    try:
        text = read_text(path)
        values = read_yaml(text)
    except (OSError, ValueError) as error:
        typed = _as_yaml(assignments(text, names), kind)
        raise ConfigError(f"config={str(path)!r} is not readable YAML: {error}.{typed}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        typed = _as_yaml(assignments(text, names), kind)
        raise ConfigError(f"config={str(path)!r} must hold `key: value` lines at its top, not {_what(meant(values))}.{typed}")
    return values


def change(values: dict[str, Any], override: str, kind: type[Settings]) -> None:
    """Set one value of nested ones to what `key.subkey=value` says; `kind` has the settings' types.

    Of a group, such as `lora={rank: 8}`, what it names is set, and the rest stays. An entry of a list has its number for a name,
    from 0: `rewards.0.weight=2`.

    Raises:
        ConfigError: if it has no key or no `=`, leads into a value, or is no YAML where it has to be.
    """
    key, equals, text = override.partition("=")
    inner = unquoted(override, plain=True)
    if inner is not None and "=" in inner:
        raise ConfigError(
            f"{override}: its quotes, {override[0]} and {override[-1]}, are part of it; write {_retyped(kind, *inner.split('=', 1))}"
        )
    if not equals or not key:
        one = next(filter(QUOTES.__contains__, override), "")
        quotes = f"{one} is no quote to a shell, unlike those in" if one else "a value with spaces goes into quotes, such as"
        raise ConfigError(
            f"{override!r} is not of the form key=value, such as optimizer.lr=1e-4; {quotes} "
            f"{assignment('sampler.negative_prompt', 'blurry, low quality')}."
        )
    _check_spelling(kind, key, text)
    parts = key.split(".")
    place: Any = values
    for depth in range(1, len(parts)):
        place = _enter(place, parts[:depth], kind)
        if isinstance(place, list) and is_place(parts[depth]) and int(parts[depth]) < len(place):
            continue
        if not isinstance(place, dict):
            outer = ".".join(parts[:depth])
            what = f"has no entry {parts[depth]}" if isinstance(place, list) else "is not a group of settings"
            # What is empty is not set here, and has its default.
            now = f" It is now {assignment(outer, meant(place))}" if place else ""
            raise ConfigError(f"{override!r}: {outer} {what}; set it as a whole.{now}")
    last: Any = int(parts[-1]) if isinstance(place, list) else parts[-1]
    before = place.get(last) if isinstance(place, dict) else place[last]
    if isinstance(place, list):
        before = _as_group(declared(kind, parts), before)
    place[last] = _beside(kind, key, before, read_value(kind, key, text))


def _enter(place: Any, path: Sequence[str], kind: type[Settings]) -> Any:
    """Return what lies at the end of a path, within what lies before its end; a group or a list that is not there is made."""
    last: Any = int(path[-1]) if isinstance(place, list) else path[-1]
    expected = declared(kind, path)
    if isinstance(place, dict) and last not in place:
        place[last] = _entries_by_default(kind, path) if _takes_list(expected) else {}
    if isinstance(place, list):
        place[last] = _as_group(expected, place[last])
    if isinstance(place[last], list):
        place[last] = list(map(copy.copy, place[last]))  # an alias of YAML names it in another place, too
    return place[last]


def _takes_list(kind: Any) -> bool:
    return any(get_origin(one) in (list, tuple) for one in alternatives(kind))


def _entries_by_default(kind: type[Settings], path: Sequence[str]) -> list[Any]:
    """Return what a list at a path holds where nobody sets it, so that one entry of it can be changed."""
    field = dict(leaves(kind)).get(".".join(path))
    default = field.get_default(call_default_factory=True) if field else None
    if not isinstance(default, (list, tuple)):
        return []
    return [one.model_dump(exclude_unset=True) if isinstance(one, Settings) else one for one in default]


def _as_group(kind: Any, value: Any) -> Any:
    """Return an entry of a list as a group of settings, if it is a group's first setting alone, such as a reward's name."""
    return {next(iter(kind.model_fields)): value} if is_group(kind) and isinstance(value, str) else value


def _beside(kind: type[Settings], key: str, before: Any, value: Any) -> Any:
    """Return a group's value with what it leaves out taken from the one before; the value itself where it is no group."""
    takes_group = any(map(is_group, alternatives(declared(kind, key.split(".")))))
    if not (takes_group and isinstance(value, dict) and isinstance(before, dict)):
        return value
    return before | {name: _beside(kind, f"{key}.{name}", before.get(name), one) for name, one in value.items()}


def apply(values: dict[str, Any], overrides: Sequence[str], kind: type[Settings]) -> None:
    """Set what `key=value` changes say, in order, in nested values.

    Raises:
        ConfigError: as `change`, if they are no texts, and if a shell has cut a value in typographic quotes at its spaces.
    """
    wrong = [one for one in overrides if not isinstance(one, str)] if isinstance(overrides, list | tuple) else [overrides]
    if wrong:
        raise ConfigError(
            "changes of settings are a list of texts, such as ['run.rounds=200', 'optimizer.lr=1e-4'], and not a "
            f"{type(wrong[0]).__name__}."
        )
    refuse_torn(overrides, kind)
    for one in overrides:
        change(values, one, kind)


def read_value(kind: type[Settings], key: str, text: str) -> Any:
    """Return what a person typed for one setting: a text as it is where the setting takes one, anything else as YAML.

    Args:
        kind: the settings.
        key: dotted name of one of them; any name is read as YAML that `kind` does not have.

    Raises:
        ConfigError: if it has to be YAML and is not.
    """
    expected = declared(kind, key.split("."))
    kinds, lists = alternatives(expected), _takes_list(expected)
    inner = unquoted(text.strip(), plain=True) if lists else None
    if inner is not None and (inner[:1] + inner[-1:] == "[]" or (text.strip()[0] in QUOTES and str not in kinds)):
        quotes = f"{text.strip()[0]} and {text.strip()[-1]}"
        raise ConfigError(f"{key}={text}: its quotes, {quotes}, are part of the value; write {_retyped(kind, key, text)}")
    bracketed = text.strip()[:1] + text.strip()[-1:] == "[]"
    if str in kinds and not (lists and bracketed):
        return None if NoneType in kinds and text in NOTHING else text
    try:
        found = read_yaml(text)
    except ValueError as error:
        if kinds == [None]:  # of no setting: its name is what is wrong
            return text
        if "typographic" in str(error):
            raise ConfigError(
                f"{key}={text}: its quotes are typographic ones, which are part of the value; write {_retyped(kind, key, text)}"
            ) from None
        remedy = ""
        if str in kinds:
            remedy = f"; a text in brackets is written as {assignment(key, [text])}"
            texts = [part.strip().strip(QUOTES + "'\"") for part in text.strip()[1:-1].split(",")]
            remedy = f"; a list of texts is written as {assignment(key, texts)}{remedy}" if all(texts) else remedy
        raise ConfigError(f"{key}={text!r} is not readable: {error}{remedy}.") from None
    return Written("") if found is None else found


def spelt(key: str) -> str:
    """Return the name of a setting as it may be meant: in small letters of the keyboard, without spaces and dots at the ends."""
    return ".".join(part.strip() for part in keyboard(key).casefold().split(".") if part.strip())


def oddities(text: str) -> str:
    """Return what is invisible in a text, or looks like something else, as an error says it; nothing where all is plain."""
    odd = named(text)
    return f", since it has {odd} in it" if odd else ""


def _check_spelling(kind: type[Settings], key: str, text: str) -> None:
    """Refuse the name of no setting that is one but for its spelling."""
    meant_key = spelt(key)
    if meant_key == key or declared(kind, key.split(".")) is not None:
        return
    names = [name for name, _ in leaves(kind) if name.rpartition(".")[2] == meant_key]
    if declared(kind, meant_key.split(".")) is not None:
        names = [meant_key]
    remedy = " or ".join(assignment(name, text) for name in names) or "a name such as optimizer.lr=1e-4"
    if names or not all(key.split(".")):
        raise ConfigError(f"{visible(key)!r} is not a setting{oddities(key)}; write {remedy}")


def refuse_torn(overrides: Sequence[str], kind: type[Settings]) -> None:
    """Refuse a value in typographic quotes that the shell has cut at its spaces.

    Raises:
        ConfigError: if there is one.
    """
    for number, first in enumerate(overrides):
        key, equals, text = first.partition("=")
        if not equals or not torn(text.removeprefix("[")):
            continue
        more = list(itertools.takewhile(lambda one: "=" not in one, overrides[number + 1 :]))
        last = next((place for place, one in enumerate(more) if any(quote in one for quote in QUOTES)), None)
        if last is not None:
            whole = " ".join([text, *more[: last + 1]])
            raise ConfigError(
                f"{key}={whole}: its quotes are typographic ones, by which a shell does not keep words together; write "
                f"{_retyped(kind, key, whole)}"
            )


def _retyped(kind: type[Settings], key: str, text: str) -> str:
    """Return a setting as it is typed with straight quotes, where it reads as a value then."""
    value = text.strip()
    while (inner := unquoted(value, plain=True)) is not None:
        value = inner.strip()
    for known in (re.sub(f"[{QUOTES}]", '"', value), straight(value)):
        try:
            found = read_yaml(known) if known[:1] in ("[", "{") else straight(known)
        except ValueError:
            continue
        lists = _takes_list(declared(kind, key.split(".")))
        return assignment(key, [found] if lists and isinstance(found, str) else known)
    return f"{key}=VALUE with straight quotes in it"


def _as_yaml(typed: Sequence[str], kind: type[Settings]) -> str:
    """Return how `key=value` is written in a file, as the end of an error; nothing where nothing was written like that."""
    values: dict[str, Any] = {}
    for one in typed:
        change(values, one, kind)
    return f" In a file `{typed[0]}` is written with a colon and a space:{in_a_file(values, values)}" if typed else ""


def _instead(path: Path, names: Collection[str], why: str) -> str:
    """Return why a configuration cannot be read, and what was probably meant."""
    if os.path.isfile(path / "config.yaml"):  # unlike Path's, false where the name is too long
        return f"is the folder of a run; go on with it by `{going_on(path)}`, or repeat it by `{repeated(path)}`."
    if str(path) in names:
        return f"is a setting; write it with its value in one word, such as {path}=VALUE."
    if "=" in str(path) and not os.path.lexists(path):
        return (
            "is a change of a setting. On the command line, give the path of a YAML file before it; in Python, "
            f"rlcm.load_config(overrides={[str(path)]!r}) has it."
        )
    if os.path.isdir(path):
        return "is a folder; give the path of a YAML file in it."
    if os.path.lexists(path):
        return f"cannot be read: {why}; {SAVE_IT} such as settings.yaml, and give that."
    if os.path.isdir(path.parent) and not os.access(path.parent, os.X_OK):
        return f"cannot be read: {why}."
    files = [str(file) for file in path.parent.glob("*.y*ml")] if os.path.isdir(path.parent) else []
    close = difflib.get_close_matches(str(path), files, n=1)
    hint = (
        f"did you mean {shlex.quote(close[0])}?"
        if close
        else "give the path of a YAML file, or leave it out for the built-in model."
    )
    return f"does not exist; {hint}"


def _what(value: Any) -> str:
    kinds: dict[type, str] = {list: "a list", str: "a text", dict: "keys that are no names"}
    return kinds.get(type(value), f"the value {value!r}")
