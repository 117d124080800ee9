"""metrics.jsonl, whatever is in it: its sound lines are read, the others counted; a resumed run's file is sound."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junk_runs import ROWS, place

from rlcm.errors import RunDirectoryError, UnreadableFileError
from rlcm.runs import metrics
from rlcm.runs.metrics import read_metrics
from rlcm.runs.rundir import RunDirectory

GOOD = [{"round": 1, "reward": 0.5}, {"round": 2, "reward": 1.0}]
LINES = [json.dumps(row).encode() for row in GOOD]
BAD = {
    "no UTF-8": b'{"round": 9, "\xff": 1}', "half": b'{"round": 3, "rew', "a list": b"[1, 2]", "no round": b'{"reward": 1}',
    "a text": b'{"round": "3"}', "true": b'{"round": true}', "negative": b'{"round": -1}', "a part": b'{"round": 1.5}',
    "NaN": b'{"round": NaN}', "huge": b'{"round": 1' + b"0" * 400 + b"}", "too many digits": b'{"round": ' + b"1" * 5000 + b"}",
    "NUL": b"\0\0\0", "deep": b"[" * 100_000, "UTF-16": '{"round": 3}'.encode("utf-16"), "long": b" " * 2_100_000,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_line_that_cannot_be_read_is_left_out_and_named(run, bad, where):
    file = run.path / "metrics.jsonl"
    file.write_bytes(b"\n".join([*LINES[:where], bad, *LINES[where:]]))

    found, left_out = read_metrics(file)
    assert found == GOOD
    assert left_out == [f"1 line of metrics.jsonl that cannot be read (line {where + 1})"]
    assert run.keep_rounds(9) == left_out
    assert file.read_bytes() == b"".join(line + b"\n" for line in LINES)
    assert run.keep_rounds(1) == []
    run.add_metrics({"round": 2, "reward": 3.0})
    assert read_metrics(file) == ([GOOD[0], {"round": 2, "reward": 3.0}], [])


def test_numbers_are_kept_as_they_are_and_other_values_left_out(run):
    (run.path / "metrics.jsonl").write_bytes(
        b'\xe2\x80\xa8\n\r\n{"round": 3.0, "a": Infinity, "b": "x", "c": null, "\\ud800": [1]}\r\n'
    )
    found, left_out = read_metrics(run.path / "metrics.jsonl")
    assert found == [{"round": 3, "a": float("inf")}]
    assert left_out == ["1 line of metrics.jsonl that cannot be read (line 1)"]


def test_of_a_very_long_file_the_end_is_read(run, monkeypatch):
    monkeypatch.setattr(metrics, "MOST", 1_000_000)
    file = run.path / "metrics.jsonl"
    with open(file, "wb") as hole:
        hole.truncate(2**31)
        hole.seek(0, os.SEEK_END)
        hole.write(b"\n" + LINES[0] + b"\n")
    found, left_out = read_metrics(file)
    assert (found, left_out) == (GOOD[:1], ["All of metrics.jsonl but its last 1 MB"])


def test_a_file_of_nothing_but_damage_is_given_up(run, monkeypatch):
    monkeypatch.setattr(metrics, "DAMAGED", 5)
    (run.path / "metrics.jsonl").write_bytes(b"x\n" * 9)
    assert read_metrics(run.path / "metrics.jsonl") == (
        [], ["5 lines of metrics.jsonl that cannot be read (line 1, 2, 3, ...)", "What comes after these in metrics.jsonl"],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "nowhere"])
def test_what_is_no_file_is_an_error_that_says_what_to_do(run, kind):
    place(run.path / "metrics.jsonl", kind)
    with pytest.raises(UnreadableFileError):
        read_metrics(run.path / "metrics.jsonl")
    with pytest.raises(RunDirectoryError, match="Move it away, then go on with the run"):
        run.keep_rounds(3)


def test_a_run_without_metrics_stays_without(run):
    assert read_metrics(run.path / "metrics.jsonl") == ([], [])
    assert run.keep_rounds(3) == []
    assert os.listdir(run.path) == []


def test_pictures_of_later_rounds_go_and_what_is_none_stays(run):
    (run.path / "samples").mkdir()
    for name in ("round-000001.png", "round-000009.png", "round-000009.json", "round-².png", "round-x.png"):
        (run.path / "samples" / name).write_text("")
    (run.path / "samples/round-000010.png").mkdir()
    run.keep_rounds(3)
    assert sorted(os.listdir(run.path / "samples")) == ["round-000001.png", "round-000010.png", "round-x.png", "round-².png"]


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=20), max_size=8), st.integers(0, 4))
def test_any_bytes_are_read_and_cut_back_to_sound_lines(tmp_path_factory, lines, last):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    file = run.path / "metrics.jsonl"
    file.write_bytes(b"\n".join(lines))
    found, _ = read_metrics(file)
    run.keep_rounds(last)
    assert read_metrics(file) == ([row for row in found if row["round"] <= last], []) or "nan" in str(found).lower()
    assert read_metrics(file)[1] == []
