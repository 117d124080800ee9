"""Run folders that anybody may have filled: what hypothesis puts in the place of files, between what a run really writes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

FILES = ("config.yaml", "metrics.jsonl", "eval.json", "report.html", "samples", "final", "evaluation")
YAMLS = (
    b"name: a\nrun: {rounds: 5}\nrewards: [{name: jpeg}]\n",
    b"!!int ''\n", b"a: [1\n", b"? [a]\n: 1\n", b"a: &a [*a]\n", b"\xff\xfe", b"2020-13-45",
    b"name: 2001-01-01\nrun: {rounds: .inf}\nrewards: {1: 2}\n", b'name: "\\uD800"\n', b"[" * 99, b"name: 0x" + b"f" * 6000, b"\0",
    b"run: 3\nevaluation: [1]\nrewards: 7\n", b"!!python/object:os.system x", b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
)  # fmt: skip
ODD = st.sampled_from(
    [
        float("nan"), float("inf"), -1, 0, 1.5, 10**300, 2**60, True, None, 
        "", "\ud800", "a\0b", "<b>", [], {}, [[]], {"mean": "x"}, "x" * 99
    ]
)  # fmt: skip
VALUES = st.recursive(
    ODD | st.integers(-5, 40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MEASURED = st.fixed_dictionaries({"mean": VALUES, "ci95": VALUES}) | VALUES
NAMED = st.dictionaries(st.sampled_from(["jpeg", "b/c", "total", "\ud800"]), MEASURED, max_size=2) | VALUES
ROWS = st.fixed_dictionaries(
    {"round": st.integers(0, 4) | VALUES},
    optional=dict.fromkeys(("reward", "rewards/jpeg", "seconds", "kl", "time/sample", "idle_groups", "lr"), VALUES),
)
EVALUATIONS = st.fixed_dictionaries(
    {"round": st.integers(0, 4) | VALUES},
    optional=dict.fromkeys(("rewards", "judge", "held_out", "guard"), NAMED)
    | {"reward": MEASURED, "seconds": VALUES, "images": VALUES, "steps": VALUES, "images_per_second": VALUES},
)
EVAL = st.fixed_dictionaries(
    {"evaluations": st.lists(EVALUATIONS, max_size=3) | VALUES},
    optional={
        "primary_metric": st.fixed_dictionaries({"label": VALUES}, optional={"unit": VALUES, "better": VALUES}) | VALUES,
        "final_round": VALUES,
    },
)
STUDY = st.dictionaries(
    st.sampled_from(["round", "rewards", "cells", "sets", "steps", "models", "entries"]), VALUES, max_size=4
)


@st.composite
def junk(draw: st.DrawFn) -> dict[str, Any]:
    """Return what stands in the place of each file: bytes, or the word for what is none."""
    other = st.sampled_from(["pipe", "folder", "loop", "nowhere"])
    lines = st.lists(ROWS.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=12), max_size=6).map(b"\n".join)
    contents = {
        "config.yaml": st.sampled_from(YAMLS) | st.binary(max_size=30),
        "metrics.jsonl": lines,
        "eval.json": EVAL.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30),
        "evaluation/eval.json": STUDY.map(lambda value: json.dumps(value).encode()),
    }
    found = {name: draw(st.one_of(content, content, content, other, st.none())) for name, content in contents.items()}
    return found | {name: draw(other | st.none()) for name in ("report.html", "samples", "final")}


def write_junk(run: Path, found: dict[str, Any]) -> None:
    """Make a run of what `junk` returned."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    for name, content in found.items():
        place(run / name, content)


def place(path: Path, content: bytes | str | None) -> None:
    """Put bytes, a pipe, a folder or a link somewhere; nothing for None."""
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content:
        path.symlink_to(path.name if content == "loop" else "nothing of that name")
