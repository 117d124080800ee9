"""One bad neighbour does not break the house: whatever lies in a run's folder, the page shows the others, and says what is wrong."""

import contextlib
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from junk_runs import FILES, junk, place, write_junk

from rlcm.errors import MissingFileError, RLCMError
from rlcm.report import read_run, write_report
from rlcm.ui import desk, fragments, run_parts
from rlcm.ui.folder import RunsFolder
from rlcm.ui.jobs import Job
from rlcm.ui.states import card


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a sound run, beside which others come and go."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "good").mkdir()
    (folder / "good/config.yaml").write_text("name: good\n")
    (folder / "good/metrics.jsonl").write_text('{"round": 1, "reward": 1.0}\n')
    return folder


def shown(folder):
    """Return the list of runs and all parts of every run, as the page shows them."""
    runs, left_out = RunsFolder(folder).look()
    job = Job("x", alive=False)
    html = fragments.runs_list([card(name, run, job) for name, run in runs.items()], None, left_out)
    for name, run in runs.items():
        html += run_parts.run_head(name, run, job) + run_parts.run_actions(name, run, job) + run_parts.run_details(name, run)
        html += "".join(part(run) for part in (run_parts.run_stage, run_parts.run_tiles, run_parts.run_curve))
    html.encode()
    assert 'data-run="good"' in html
    return html


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk())
def test_whatever_a_run_holds_the_list_and_the_report_are_made(folder, found):
    write_junk(folder / "bad", found)
    html = shown(folder)
    listed = found["config.yaml"] is not None or found["metrics.jsonl"] is not None
    assert ("bad" in html) == listed
    with contextlib.suppress(RLCMError):  # where there is nothing of a run
        assert write_report(folder / "bad").is_file()


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "nowhere"])
@pytest.mark.parametrize("name", FILES)
def test_no_file_in_a_files_place_is_waited_for(folder, name, kind):
    write_junk(folder / "bad", {"config.yaml": b"name: bad\n", "metrics.jsonl": b'{"round": 1}\n'})
    (folder / "bad" / name).unlink(missing_ok=True)
    place(folder / "bad" / name, kind)
    started = time.monotonic()
    html = shown(folder)
    assert time.monotonic() - started < 5
    assert 'data-run="bad"' in html
    if name in ("config.yaml", "metrics.jsonl"):
        assert f"{name}: it cannot be read (it is a" in html
    with pytest.raises(MissingFileError):
        RunsFolder(folder).file("bad", name)


def test_pictures_that_are_no_files_are_named(folder):
    write_junk(folder / "bad", {"config.yaml": b"name: bad\n"})
    for kind, number in (("pipe", 1), ("loop", 2), (b"%!PS-Adobe-3.0", 3)):
        (folder / "bad/samples").mkdir(exist_ok=True)
        place(folder / f"bad/samples/round-{number:06d}.png", kind)
        (folder / f"bad/samples/round-{number:06d}.json").write_text(
            '{"round": 1, "columns": 1, "cell": [8, 8], "prompts": ["a"], "seeds": [1]}'
        )
    html = shown(folder)
    for number in (1, 2, 3):
        assert f"Pictures round-{number:06d}.png: they or their description cannot be read" in html


def test_a_run_that_breaks_the_reading_itself_is_left_out_and_named(folder, monkeypatch):
    write_junk(folder / "bad", {"config.yaml": b"name: bad\n"})

    def broken(path):
        if path.name == "bad":
            raise ZeroDivisionError("oops")
        return read_run(path)

    monkeypatch.setattr("rlcm.ui.folder.read_run", broken)
    runs, left_out = RunsFolder(folder).look()
    assert list(runs) == ["good"]
    assert left_out == {"bad": "it cannot be read (ZeroDivisionError: oops)."}


def test_parts_of_the_page_that_fail_say_so():
    assert "KeyError" in desk.in_words(lambda: {}["x"])()


def test_loops_and_deep_folders_in_a_run_do_not_hide_it(folder):
    write_junk(folder / "bad", {"config.yaml": b"name: bad\n"})
    place(folder / "bad/loop", "loop")
    (folder / "bad/up").symlink_to("..")
    deep = folder / "bad"
    for _ in range(300):
        deep = deep / "d"
        os.mkdir(deep)
    assert 'data-run="bad"' in shown(folder)
    assert write_report(folder / "bad").is_file()


def test_the_folder_of_runs_is_a_link_to_itself(tmp_path):
    (tmp_path / "runs").symlink_to("runs")
    with pytest.raises(RLCMError, match="is a link that leads back to itself; give the folder that holds the runs"):
        RunsFolder(tmp_path / "runs")
