"""What the operating system refuses to write is said in words that fit its reason."""

import errno
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junk_runs import place

from rlcm.errors import RewardError, RunDirectoryError
from rlcm.runs.refusals import disk_errors, in_words, require_writable
from rlcm.runs.rundir import RunDirectory

SHORT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}


def said_by(write):
    with pytest.raises(RunDirectoryError) as caught:
        write()
    return str(caught.value)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "runs").mkdir()
    return RunDirectory.create(tmp_path / "runs", "a", "seed: 1\n")


@pytest.mark.parametrize("lost", ["deleted", "renamed", "with the folder above it"])
def test_a_run_whose_folder_is_gone_is_told_so(run, tmp_path, lost):
    if lost == "renamed":
        run.path.rename(tmp_path / "other")
    else:
        shutil.rmtree(run.path if lost == "deleted" else run.path.parent)
    folder = run.path.parent if lost.startswith("with") else run.path
    for write in (
        lambda: run.add_metrics({"round": 1}),
        lambda: run.write_json("eval.json", {}),
        lambda: run.write_text("final/README.md", ""),
    ):
        message = said_by(write)
        assert f"the folder {folder} is not there any more: it was deleted, renamed or unmounted" in message
        assert "then go on with `rlcm train --resume RUN`; what was deleted with it is lost." in message
        assert "free some space" not in message


def test_the_folder_that_is_gone_is_the_uppermost(run):
    assert f"the folder {run.path / 'final'} is not" in said_by(lambda: run.write_text("final/README.md", ""))


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    (tmp_path / "x").rmdir()
    assert "the working directory is gone" in said_by(lambda: RunDirectory.create(type(tmp_path)("runs"), "a"))


def test_what_is_in_the_way_is_named(run, tmp_path):
    (run.path / "final").write_text("mine")
    assert f"{run.path / 'final'} (it is a file) is in the way" in said_by(lambda: run.write_text("final/README.md", ""))
    (run.path / "eval.json").mkdir()
    assert f"{run.path / 'eval.json'} is in the way" in said_by(lambda: run.write_json("eval.json", {}))
    place(tmp_path / "nowhere", "nowhere")
    assert "/nowhere is a link to" in said_by(lambda: _open(tmp_path / "nowhere" / "x"))
    assert "shorter names" in said_by(lambda: _open(tmp_path / ("x" * 300)))


def _open(file):
    with disk_errors(file), open(file, "w"):
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device. What was written before is intact; free some space or choose another folder"),
        (errno.EDQUOT, "free some space or choose another folder"),
        (errno.EACCES, "Permission denied. What was written before is intact; make"),
        (errno.EROFS, "intact; choose another folder, on a file system that can be written"),
        (errno.EIO, "has failed; mend that first"),
        (errno.ESTALE, "has failed; mend that first"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EFBIG, "File too large. What was written before is intact; choose another folder"),
    ],
)
def test_every_reason_has_its_remedy(tmp_path, number, words):
    message = in_words(OSError(number, os.strerror(number)), tmp_path / "x", "choose another folder")
    assert words in message
    assert ("free some space" in message) == (number in SHORT_OF_SPACE)


@given(number=st.sampled_from(sorted(errno.errorcode)), name=st.sampled_from([None, "/nowhere/x", b"/nowhere", 3]))
def test_space_is_asked_for_where_it_is_short_alone(tmp_path_factory, number, name):
    error = OSError(number, os.strerror(number), *([] if name is None else [name]))
    message = in_words(error, tmp_path_factory.getbasetemp() / "x", "choose another folder", ", then try again")
    assert ("free some space" in message) == (number in SHORT_OF_SPACE)
    assert not message.endswith(".")


@pytest.mark.parametrize(
    ("closed", "mode", "said"),
    [
        ("folder", os.W_OK, "make {folder} writable for you"),
        ("folder", os.X_OK, "the folder {folder} may not be entered by you; let its owner allow it"),
        (None, 0, "make {file} writable for you"),
    ],
)
def test_what_has_to_be_allowed_is_named(tmp_path, monkeypatch, closed, mode, said):
    """A file that may be written is replaced by a new one, and for that the folder counts."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_text("old")
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, asked: not (closed and path == folder and asked & mode) and allowed(path, asked)
    )
    found = in_words(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), folder / "a.png", "choose another folder")
    assert said.format(folder=folder, file=folder / "a.png") + ", or choose another folder" in found


def test_a_place_is_tried_before_the_work(tmp_path):
    require_writable(tmp_path / "not" / "there" / "yet")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for folder, said in (
        ("file/x", r"file \(it is a file\) is in the way"),
        ("link/x", "link is a link to nowhere, which is not there"),
    ):
        with pytest.raises(RunDirectoryError, match=said):
            require_writable(tmp_path / folder)


def test_the_systems_number_is_read_where_an_error_has_none(tmp_path):
    for error in (OSError("No space left on device (os error 28)"), ValueError("(os error 28)")):
        with pytest.raises(RunDirectoryError, match=r"No space left on device.*free some space"), disk_errors(tmp_path):
            raise error
    with pytest.raises(RewardError, match="111"), disk_errors(tmp_path):
        raise RewardError("Connection refused (os error 111)")
