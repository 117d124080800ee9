"""Which runs a folder holds: a bad neighbour is left out and named, the others are there."""

import os

import pytest
from junk_runs import place

from rlcm.runs.listing import runs_in


@pytest.fixture
def folder(tmp_path):
    """A folder with a sound run."""
    (tmp_path / "runs/good").mkdir(parents=True)
    (tmp_path / "runs/good/config.yaml").write_text("name: good\n")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("kind", "why"), [("loop", "it is a link that leads back to itself"), ("nowhere", "it is a link that leads nowhere")]
)
def test_links_that_lead_to_no_folder(folder, kind, why):
    place(folder / "bad", kind)
    assert runs_in(folder) == ([folder / "good"], {"bad": why})


def test_runs_all_of_whose_files_are_none(folder):
    (folder / "bad").mkdir()
    place(folder / "bad/config.yaml", "pipe")
    place(folder / "bad/metrics.jsonl", "folder")
    assert runs_in(folder) == ([folder / "good"], {"bad": "config.yaml: it is a pipe; metrics.jsonl: it is a folder"})
    (folder / "bad/metrics.jsonl").rmdir()
    (folder / "bad/metrics.jsonl").write_text("")
    assert {run.name for run in runs_in(folder)[0]} == {"good", "bad"}  # what can be read of it is shown


@pytest.mark.parametrize(("name", "shown"), [(b"run\xff", "run\\xff"), (b"a\nb", "a\\x0ab"), (b"\x7f", "\\x7f")])
def test_names_that_cannot_be_shown(folder, name, shown):
    bad = os.path.join(os.fsencode(folder), name)
    os.mkdir(bad)
    with open(os.path.join(bad, b"config.yaml"), "w"):
        pass
    runs, left_out = runs_in(folder)
    assert runs == [folder / "good"]
    assert list(left_out) == [shown]
    assert "rename the folder" in left_out[shown]
    assert ("UTF-8" in left_out[shown]) == (name == b"run\xff")
    assert ("such as a line break" in left_out[shown]) == (name != b"run\xff")


def test_names_of_all_languages_and_links_to_runs_are_fine(folder):
    for name in ("Läufe", "\N{GRINNING FACE} 1", "a & <b>"):
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text("")
    (folder / "again").symlink_to("good")
    runs, left_out = runs_in(folder)
    assert {run.name for run in runs} == {"Läufe", "\N{GRINNING FACE} 1", "a & <b>", "good", "again"}
    assert left_out == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(folder):
    (folder / "bad").mkdir()
    (folder / "bad/config.yaml").write_text("")
    (folder / "bad").chmod(0)
    try:
        assert runs_in(folder) == ([folder / "good"], {"bad": "Permission denied"})
    finally:
        (folder / "bad").chmod(0o700)


def test_what_looks_like_no_run_is_passed_over(folder):
    for kind, name in (("pipe", "pipe"), ("folder", "notes"), (b"", "page.html"), ("folder", ".hidden")):
        place(folder / name, kind)
    assert runs_in(folder) == ([folder / "good"], {})
    assert runs_in(folder / "none") == ([], {})
    assert runs_in(folder / "page.html") == ([], {str(folder / "page.html"): "Not a directory"})
