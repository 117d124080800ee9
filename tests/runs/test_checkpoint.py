"""Checkpoints: whole or absent, the newest whole one is found, and a full disk costs none of the older ones."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rlcm.errors import CheckpointError, RunDirectoryError
from rlcm.runs.checkpoint import newest_checkpoint, rounds_kept, save_checkpoint
from rlcm.runs.serialization import load_state


def state(number):
    return {"round": number, "adapter": {"w": torch.full((64,), float(number))}, "optimizer": {"state": {0: torch.ones(2)}}}


@pytest.fixture
def run(tmp_path):
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, number, state(number), keep_last=3)
    return tmp_path


def test_the_newest_comes_back(run):
    found, damaged = newest_checkpoint(run)
    assert (found.round, found.path.name, damaged) == (3, "checkpoint-000003", [])
    assert torch.equal(found.state["adapter"]["w"], torch.full((64,), 3.0))
    assert torch.equal(found.state["optimizer"]["state"][0], torch.ones(2))


def test_only_the_newest_are_kept(run):
    save_checkpoint(run, 12, state(12), keep_last=2)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-000003", "checkpoint-000012"]


def test_a_whole_checkpoint_of_the_same_round_is_left_alone_and_a_damaged_one_replaced(run):
    other = state(3) | {"adapter": {"w": torch.full((64,), 30.0)}}
    save_checkpoint(run, 3, other, keep_last=3)
    assert newest_checkpoint(run)[0].state["adapter"]["w"][0] == 3
    damage(run / "checkpoint-000003", "bit flipped")
    save_checkpoint(run, 3, other, keep_last=3)
    assert newest_checkpoint(run)[0].state["adapter"]["w"][0] == 30


def damage(path, how):
    file = path / "state.safetensors"
    data = bytearray(file.read_bytes())
    if how == "cut short":
        file.write_bytes(data[:-7])
    elif how == "bit flipped":
        data[-5] ^= 1
        file.write_bytes(data)
    elif how == "no checksum":
        (path / "checksums.json").unlink()
    elif how == "bad checksum":
        (path / "checksums.json").write_text("[]")
    else:
        file.unlink()


ODD = ["{", "[]", '"x"', "null", '{"state.safetensors": null}', '{"state.safetensors": []}', "[" * 100_000, "\xff"]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_checksums_are_passed_over(run, text):
    (run / "checkpoint-000003" / "checksums.json").write_text(text, encoding="latin-1")
    found, damaged = newest_checkpoint(run)
    assert (found.round, len(damaged)) == (2, 1)


def forge(path, content):
    """Write a state whose checksum is right."""
    (path / "state.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (path / "checksums.json").write_text(json.dumps({"state.safetensors": digest}))


STRUCTURES = [
    "[]", "3", "null", "{", "{}", '{"pairs": 3}', '{"pairs": [3]}', '{"pairs": [[1, 2, 3]]}', '{"pairs": [[[], 2]]}',
    '{"__tensor__": "t0"}', '{"pairs": [["round", {"__tensor__": "gone"}]]}', '{"pairs": [["round", {"__tensor__": []}]]}',
    '{"pairs": [["round", 2]]}', '{"pairs": [["round", "3"]]}', '{"pairs": []}', "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("structure", STRUCTURES, ids=range(len(STRUCTURES)))
def test_forged_states_are_passed_over(run, structure):
    forge(run / "checkpoint-000003", save({"t0": torch.ones(2)}, metadata={"structure": structure}))
    found, damaged = newest_checkpoint(run)
    assert (found.round, len(damaged)) == (2, 1)
    assert "checkpoint-000003 is damaged" in damaged[0]


def test_a_renamed_one_is_not_that_of_another_round(run):
    shutil.copytree(run / "checkpoint-000001", run / "checkpoint-000009")
    for name in ("checkpoint-12abc", "checkpoint-0000010x", "checkpoint-٠٠٠٠١٢", "checkpoint-" + "9" * 40):
        (run / name).mkdir()
    found, damaged = newest_checkpoint(run)
    assert found.round == 3
    assert damaged == ["checkpoint-000009 is damaged (its state is that of round 1, so the folder was renamed or copied)"]
    assert rounds_kept(run) == [1, 2, 3, 9]
    save_checkpoint(run, 9, state(9), keep_last=3)  # the round comes, and takes the place of the copy
    assert newest_checkpoint(run)[0].state["round"] == 9


def test_later_folders_cost_no_new_checkpoint(run):
    (run / "checkpoint-000099").mkdir()
    save_checkpoint(run, 4, state(4), keep_last=1)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-000004", "checkpoint-000099"]
    assert newest_checkpoint(run)[0].round == 4


@pytest.mark.parametrize("what", ["file", "link", "pipe inside"])
def test_something_else_in_its_place(run, what):
    place = run / "checkpoint-000004"
    if what == "file":
        place.write_text("a file")
    elif what == "link":
        place.symlink_to(run / "checkpoint-000003")
    else:
        place.mkdir()
        os.mkfifo(place / "checksums.json")
        os.mkfifo(place / "state.safetensors")
    assert newest_checkpoint(run)[0].round == 3
    save_checkpoint(run, 4, state(4), keep_last=9)
    assert newest_checkpoint(run)[0].round == 4


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda s: st.lists(s, max_size=3) | st.dictionaries(
    st.sampled_from(["pairs", "__tensor__", "round", "x"]), s, max_size=3), max_leaves=9))  # fmt: skip
def test_whatever_a_state_says_it_is_a_state_or_a_checkpoint_error(structure):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        file.write_bytes(save({"t0": torch.ones(2)}, metadata={"structure": json.dumps(structure)}))
        with contextlib.suppress(CheckpointError):
            assert isinstance(load_state(file), dict)


@pytest.mark.parametrize("how", ["cut short", "bit flipped", "no checksum", "bad checksum", "no state"])
def test_a_damaged_one_is_passed_over_and_named(run, how):
    damage(run / "checkpoint-000003", how)
    found, damaged = newest_checkpoint(run)
    assert found.round == 2
    assert len(damaged) == 1
    assert "checkpoint-000003 is damaged" in damaged[0]


def test_nothing_whole_is_an_error_that_says_so(run, tmp_path_factory):
    for number in (1, 2, 3):
        damage(run / f"checkpoint-{number:06d}", "bit flipped")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint to go on from .*checkpoint-000001 is damaged"):
        newest_checkpoint(run)
    assert newest_checkpoint(tmp_path_factory.mktemp("empty")) == (None, [])
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file"):
        newest_checkpoint(run / "nowhere")


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_full_disk_is_one_clear_error_and_older_ones_stay(run, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(path.name for path in run.rglob("*"))
    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunDirectoryError, match=r"checkpoint-000004: No space left on device.*intact.*free some space"):
        save_checkpoint(run, 4, state(4), keep_last=1)
    monkeypatch.undo()
    assert sorted(path.name for path in run.rglob("*")) == before
    assert newest_checkpoint(run)[0].round == 3


def test_a_half_written_one_is_not_taken_for_a_checkpoint(run):
    (run / ".checkpoint-000004.partial").mkdir()
    (run / "checkpoint-000005").write_text("a file")
    (run / "checkpoint-7").mkdir()
    assert newest_checkpoint(run)[0].round == 3
    save_checkpoint(run, 4, state(4), keep_last=9)
    assert newest_checkpoint(run)[0].round == 4
    assert not (run / ".checkpoint-000004.partial").exists()
