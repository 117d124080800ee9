"""Checkpoints: whole or absent, the newest whole one is found, and a full disk costs none of the older ones."""

import errno
import os

import pytest
import torch

from rlcm.errors import CheckpointError, RunDirectoryError
from rlcm.runs.checkpoint import newest_checkpoint, save_checkpoint


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
    save_checkpoint(run, 3, state(30), keep_last=3)
    assert newest_checkpoint(run)[0].state["round"] == 3
    damage(run / "checkpoint-000003", "bit flipped")
    save_checkpoint(run, 3, state(30), keep_last=3)
    assert newest_checkpoint(run)[0].state["round"] == 30


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
