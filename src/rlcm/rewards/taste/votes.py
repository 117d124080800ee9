"""votes.jsonl: which of several pictures of one prompt people liked best, a line a vote, only ever appended to.

A line is one of

    {"id": "4f0c...", "time": "2026-11-29T10:00:00+00:00", "voter": "ada", "prompt": "a fox",
     "pictures": ["pictures/1b9d....png", "pictures/77e0....png"], "chosen": [1]}
    {"undo": "4f0c...", "time": "2026-11-29T10:00:04+00:00"}

`pictures` are PNG files, named from the folder of votes.jsonl; their names are digests of what they show. `chosen` holds the
places, from 0, of the pictures that were liked best: one; several that are equally good; none at all where none is good. `voter`
may be left out.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from operator import index
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from rlcm.errors import ConfigError, MissingFileError, UnreadableFileError, UsageError
from rlcm.rewards.image.pixels import to_png, to_uint8
from rlcm.runs import digests
from rlcm.runs.files import read_bytes
from rlcm.runs.locks import take_lock
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import write_bytes
from rlcm.text_files import marked

MOST_PICTURES = 9
PICTURES = "pictures"
"""The folder of the pictures, beside the file."""
_BEYOND = 1e-3
"""How far rounding may take a picture out of [0, 1]."""


class Line(BaseModel):
    """A vote, as it is written."""

    id: str = Field(min_length=1)
    prompt: str
    pictures: list[str] = Field(min_length=2, max_length=MOST_PICTURES)
    chosen: list[int]
    voter: str = ""
    time: str = ""

    @field_validator("chosen", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        places = value if isinstance(value, list) else [value]
        if any(type(place) is not int for place in places):  # true and "1" are none
            raise ValueError("must be the places of pictures from 0, as whole numbers without quotes, such as 1 or [0, 2]")
        return places

    @model_validator(mode="after")
    def _names_what_is_there(self) -> Line:
        if len(set(self.chosen)) < len(self.chosen) or not set(self.chosen) <= set(range(len(self.pictures))):
            raise ValueError(f"chosen={self.chosen} must be places of the {len(self.pictures)} pictures, from 0, each once")
        return self


class Undo(BaseModel):
    """That a vote is taken back, as it is written."""

    undo: str = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Vote:
    """Which of several pictures of one prompt somebody liked best."""

    id: str
    prompt: str
    pictures: tuple[Path, ...]
    """2 to 9 files."""
    chosen: tuple[int, ...]
    """Places of the best ones, from 0; empty where none is good."""
    voter: str = ""


def read_votes(*files: Path) -> list[Vote]:
    """Return the votes of one or several files, those that were taken back left out, and a vote that stands in two files once.

    What a crash left of a last line is no vote, and is passed over.

    Raises:
        MissingFileError: if a file is not there.
        ConfigError: if one cannot be read, a line is no vote, or two lines with one id say different things.
    """
    votes: dict[str, Vote] = {}
    undone: set[str] = set()
    places: dict[str, str] = {}
    clashes: dict[str, str] = {}
    for file in files:
        own: dict[str, Vote | None] = {}
        if not file.exists():
            raise MissingFileError(
                f"votes={str(file)!r} is not there; give the votes.jsonl that `rlcm ui` or VotesFile has written."
            )
        try:
            data = read_bytes(file)
        except UnreadableFileError as error:
            raise ConfigError(f"votes={str(file)!r} cannot be read: {error.reason}.") from error
        if encoding := marked(data):
            raise ConfigError(f"votes={str(file)!r} is in {encoding.upper()}; save it as UTF-8.")
        lines = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            place = f"{file}, line {number}"
            found = _parse(line, place, is_last=number == len(lines))
            if isinstance(found, str):
                own[found] = None
                clashes.pop(found, None)
            elif found is not None:
                pictures = tuple(file.parent / name for name in found.pictures)
                vote = Vote(found.id, found.prompt, pictures, tuple(found.chosen), found.voter)
                before = own.get(found.id) or votes.get(found.id)
                if before is None or found.id in undone:
                    places[found.id] = place
                elif not _says_the_same(before, vote):
                    clashes[found.id] = f"{places[found.id]}, and {place}"
                own[found.id] = own.get(found.id) or vote
        for id, kept in own.items():
            if kept is None:
                undone.add(id)
            else:
                votes.setdefault(id, kept)
    for id, lines_of_it in clashes.items():
        if id in votes and id not in undone:
            raise ConfigError(f"{lines_of_it}, answer the question {id!r} differently; delete one of the two lines.")
    return [vote for vote in votes.values() if vote.id not in undone]


def _says_the_same(one: Vote, other: Vote) -> bool:
    names = [[picture.name for picture in vote.pictures] for vote in (one, other)]
    return names[0] == names[1] and (one.prompt, set(one.chosen)) == (other.prompt, set(other.chosen))


def _parse(line: bytes, place: str, *, is_last: bool) -> Line | str | None:
    """Return a vote, or the id of one that is taken back; None for an empty line, and for a last one that was cut short."""
    if not line.strip():
        return None
    try:
        value = json.loads(line)
        if isinstance(value, dict) and "undo" in value:
            return Undo.model_validate(value).undo
        return Line.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        given = "" if first["type"] == "missing" or not first["loc"] else f"={json.dumps(first['input'])[:80]}"
        what = 'write an object, {"id": ..., "prompt": ...}' if first["type"] == "model_type" else first["msg"]
        what = what.removeprefix("Value error, ")
        raise ConfigError(f"{place} is no vote: {where}{given}: {what}; correct or delete the line.") from error
    except (ValueError, RecursionError) as error:
        if is_last and _is_torn(line):
            return None
        raise ConfigError(f"{place} is no JSON ({error}); correct or delete the line.") from error


def _is_torn(line: bytes) -> bool:
    """Return whether a line is no whole value of JSON, nor one with more behind it."""
    try:
        json.JSONDecoder().raw_decode(line.decode("utf-8", "replace").strip())
    except (ValueError, RecursionError):
        return True
    return False


class VotesFile:
    """A file that votes are added to, each of them safely on the disk before it counts; several processes may add to one.

    Args:
        path: of votes.jsonl; it and its folder are made with the first vote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, prompt: str, images: Tensor, chosen: Sequence[int], *, voter: str = "", id: str | None = None) -> str:
        """Write a vote down, and return its id.

        Args:
            images: [K, 3, h, w] in [0, 1], 2 to 9 of them.
            chosen: places of the best ones, from 0; empty where none is good.
            id: of the question, so that nobody answers it twice; left out, a new one.

        Raises:
            UsageError: if the pictures or the prompt are not such, if `chosen` names no pictures, or the question was answered before.
            RunDirectoryError: if it cannot be written; nothing of it counts then.
        """
        _require_pictures(images)
        if not isinstance(prompt, str) or not prompt.strip():
            raise UsageError(f"prompt={prompt!r} is no text; give the text that the pictures were drawn for.")
        try:
            places = sorted(map(index, chosen))
        except TypeError:
            raise UsageError(f"chosen={chosen!r}: give the places of the best pictures, such as [0], or [] for none.") from None
        levels = to_uint8(images)
        files = [to_png(level) for level in levels]
        names = [f"{PICTURES}/{digests.of_bytes(file)}.png" for file in files]
        id = id or uuid.uuid4().hex
        try:
            line = Line(id=id, time=_now(), voter=voter, prompt=prompt, pictures=names, chosen=places)
        except ValidationError as error:
            raise UsageError(f"this is no vote: {error.errors()[0]['msg']}.") from error
        with disk_errors(self.path), self._alone():
            if self.path.exists() and id in _answered(self.path):
                raise UsageError("this question was answered before; the first answer counts. Take it back to answer again.")
            (self.path.parent / PICTURES).mkdir(exist_ok=True)
            for name, data in zip(names, files, strict=True):
                if not (self.path.parent / name).exists():  # its name says what it holds
                    write_bytes(self.path.parent / name, data)
            self._append(line.model_dump())
        return id

    def undo(self, id: str) -> None:
        """Take a vote back; its line stays, and another one says so.

        Raises:
            RunDirectoryError: if it cannot be written; the vote counts then.
        """
        with disk_errors(self.path), self._alone():
            self._append({"undo": id, "time": _now()})

    def votes(self) -> list[Vote]:
        """Return the votes that count; none where the file is not there yet. Errors as `read_votes`."""
        return read_votes(self.path) if self.path.exists() else []

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within it, no other process writes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(self.path.with_name(f".{self.path.name}.lock"), wait=True)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _append(self, value: dict[str, Any]) -> None:
        """Add a line, whole or not at all; half a line that a crash left is moved into a file beside this one."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            last = read_bytes(self.path).rpartition(b"\n")[2] if size else b""
            if torn := bool(last) and _is_torn(last):
                with open(self.path.with_name(f"{self.path.name}.torn"), "ab") as beside:
                    beside.write(last + b"\n")
                size -= len(last)
                os.ftruncate(descriptor, size)
            data = b"\n" * (bool(last) and not torn) + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def _require_pictures(images: Any) -> None:
    """Refuse what is no float tensor [K, 3, h, w] in [0, 1]; rounding may go a little beyond."""
    wanted = "give the pictures of a question as a float tensor [K, 3, h, w] in [0, 1], without NaN"
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3 and images.numel() > 0):
        raise UsageError(f"images={list(images.shape) if isinstance(images, Tensor) else type(images).__name__}: {wanted}.")
    if not images.is_floating_point():
        raise UsageError(f"images are {str(images.dtype).removeprefix('torch.')}: {wanted}, such as images / 255.")
    if not images.isfinite().all():
        raise UsageError(f"images have values that are not finite: {wanted}.")
    low, high = float(images.min()), float(images.max())
    if low < -_BEYOND or high > 1 + _BEYOND:
        other = "images.clamp(0, 1)"
        if low >= 0 and high > 2:
            other = "images / 255"
        elif -1 - _BEYOND <= low < -0.2 and high <= 1 + _BEYOND:
            other = "images / 2 + 0.5"
        raise UsageError(f"images are in [{low:.4g}, {high:.4g}]: {wanted}, such as {other}.")


def _answered(file: Path) -> set[str]:
    found: set[str] = set()
    for line in read_bytes(file).split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found |= {id for id in (value.get("id"),) if isinstance(id, str)}
            found -= {id for id in (value.get("undo"),) if isinstance(id, str)}
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
