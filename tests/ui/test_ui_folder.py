"""The folder of runs: what is in it, and nothing outside."""

import json
import os
import shutil

import pytest

from rlcm.errors import MissingFileError, UsageError
from rlcm.ui.folder import RunsFolder


def write_run(folder, name, rounds=2, changed=None):
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"name: {name}\nrun: {{rounds: {rounds}}}\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps({"round": i + 1, "reward": i}) + "\n" for i in range(rounds)))
    if changed:
        os.utime(run / "metrics.jsonl", (changed, changed))
    return run


@pytest.fixture
def folder(tmp_path):
    """A folder beside a secret, with two runs, a hidden one and one that is no run."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.yaml").write_text("password: hunter2\n")
    runs = tmp_path / "runs"
    write_run(runs, "old", changed=1_000)
    write_run(runs, "new", changed=2_000)
    write_run(runs, ".hidden")
    (runs / "notes").mkdir()
    return runs


def test_runs_by_their_last_change(folder):
    assert RunsFolder(folder).names() == ["new", "old"]
    assert list(RunsFolder(folder).look()[0]) == ["new", "old"]


def test_a_folder_that_is_not_there_is_an_empty_one(tmp_path):
    assert RunsFolder(tmp_path / "none").names() == []


def test_what_is_no_folder_of_runs_is_refused_with_a_remedy(folder):
    with pytest.raises(UsageError, match="is a file; give the folder"):
        RunsFolder(folder / "old" / "config.yaml")
    with pytest.raises(UsageError, match=f"rlcm ui {folder}"):
        RunsFolder(folder / "old")


@pytest.mark.parametrize("name", ["../secret", "..", ".", "", "old/..", "/etc", "old/", ".hidden", "notes", "old\0", "none"])
def test_names_that_are_no_runs(folder, name):
    with pytest.raises(MissingFileError, match="there is no run"):
        RunsFolder(folder).run_path(name)


@pytest.mark.parametrize(
    "inside",
    ["../new/config.yaml", "../../secret/config.yaml", "/etc/passwd", "", "samples", ".x", "a/../config.yaml", "..\\x", "x\0"],
)
def test_files_that_are_none_of_a_run(folder, inside):
    (folder / "old" / ".x").write_text("hidden")
    (folder / "old" / "samples").mkdir()
    with pytest.raises(MissingFileError, match="has no file"):
        RunsFolder(folder).file("old", inside)


def test_a_file_of_a_run(folder):
    assert RunsFolder(folder).file("old", "config.yaml").read_text().startswith("name: old")


def test_a_run_that_links_out_of_the_folder_is_left_out(folder, tmp_path):
    (folder / "linked").symlink_to(tmp_path / "secret")
    (folder / "old" / "final").mkdir()
    (folder / "old" / "final" / "README.md").symlink_to(tmp_path / "secret" / "config.yaml")
    runs = RunsFolder(folder)
    assert runs.names() == ["new"]
    assert list(runs.left_out()) == ["linked", "old"]
    assert all("link to somewhere outside" in why for why in runs.left_out().values())
    for name, inside in (("linked", "config.yaml"), ("old", "final/README.md"), ("old", "config.yaml")):
        with pytest.raises(MissingFileError):
            runs.file(name, inside)


def test_links_inside_the_folder_are_kept_and_the_folder_may_be_a_link(folder, tmp_path):
    (folder / "old" / "latest.yaml").symlink_to(folder / "old" / "config.yaml")
    (tmp_path / "here").symlink_to(folder)
    assert RunsFolder(tmp_path / "here").names() == ["new", "old"]
    assert RunsFolder(tmp_path / "here").file("old", "latest.yaml").is_file()


def test_a_run_is_read_again_when_it_has_changed(folder):
    runs = RunsFolder(folder)
    first = runs.read("old")
    assert runs.read("old") is first
    runs._known["old"].again = 0.0
    assert runs.read("old") is first
    with open(folder / "old" / "metrics.jsonl", "a") as file:
        file.write('{"round": 3, "reward": 9}\n')
    assert runs.read("old").last_round == 3


def test_a_run_that_changes_all_the_time_is_not_read_all_the_time(folder):
    runs = RunsFolder(folder)
    first = runs.read("old")
    runs._known["old"].again = float("inf")
    (folder / "old" / "metrics.jsonl").write_text("")
    assert runs.read("old") is first


def test_a_run_that_was_deleted_is_passed_over(folder, monkeypatch):
    runs = RunsFolder(folder)
    survey = runs._survey()
    shutil.rmtree(folder / "old")
    monkeypatch.setattr(runs, "_survey", lambda: survey)
    found, left_out = runs.look()
    assert (list(found), left_out) == (["new"], {})
