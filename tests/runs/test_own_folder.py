"""Folders of fixed names: what a command wrote there it may replace, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcm.errors import UsageError
from rlcm.runs.own_folder import MARK, OwnFolder, is_run, refuse_runs

NAMES = ("README.md", "pictures/base-[0-9]*.png")


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_what_a_command_wrote_it_writes_again(tmp_path):
    own = OwnFolder(tmp_path / "new/place", "rlcm a", NAMES)
    for _ in range(2):
        own.begin(clear=True)
        assert not (own.folder / "README.md").exists()
        write(own.folder, *("README.md", "pictures/base-1.png"))
        own.end()


def test_a_call_that_was_cut_off_is_done_again(tmp_path):
    own = OwnFolder(tmp_path, "rlcm a", NAMES)
    own.begin()
    write(tmp_path, "pictures/base-1.png")
    own.begin(clear=True)
    assert not (tmp_path / "pictures/base-1.png").exists()


@pytest.mark.parametrize("name", ["README.md", "pictures/base-12.png"])
def test_what_somebody_else_wrote_stays(tmp_path, name):
    write(tmp_path, name, "notes.txt", "pictures/base-mine.png")
    with pytest.raises(UsageError, match=f"would replace {name} there.*choose another folder with -o"):
        OwnFolder(tmp_path, "rlcm a", NAMES).begin(clear=True)
    assert (tmp_path / name).read_text() == name
    (tmp_path / name).unlink()
    OwnFolder(tmp_path, "rlcm a", NAMES).begin(clear=True)
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "pictures/base-mine.png").exists()


def test_one_command_knows_nothing_of_what_another_wrote(tmp_path):
    first, other = OwnFolder(tmp_path, "rlcm a", ["a"]), OwnFolder(tmp_path, "rlcm a", ["b"])
    for own in (first, other, first):  # as exports of two runs into one folder
        own.begin()
        write(tmp_path, own.names[0])
        own.end()
    with pytest.raises(UsageError, match="rlcm c"):
        OwnFolder(tmp_path, "rlcm c", ["a"]).begin()


def test_a_link_that_leads_nowhere_is_somebody_elses(tmp_path):
    (tmp_path / "README.md").symlink_to("elsewhere")
    with pytest.raises(UsageError, match=r"README\.md"):
        OwnFolder(tmp_path, "rlcm a", NAMES).begin()


@given(st.binary(max_size=60) | st.sampled_from([b"[]", b'{"rlcm a": 3}', b'{"rlcm a": {"README.md": null}}']))
def test_a_mark_that_says_nothing_opens_nothing(tmp_path_factory, mark):
    folder = tmp_path_factory.mktemp("f")
    write(folder, "README.md")
    (folder / MARK).write_bytes(mark)
    with pytest.raises(UsageError, match="would replace"):
        OwnFolder(folder, "rlcm a", NAMES).require()


@pytest.mark.parametrize(
    "sign", ["metrics.jsonl", "depends_on.json", "final/a.safetensors", "checkpoint-000002/state.safetensors"]
)
def test_runs_are_left_alone_with_their_parts(tmp_path, sign):
    write(tmp_path / "run", sign, "config.yaml")
    assert is_run(tmp_path / "run")
    for place in ("run", "run/final", "run/best", "run/checkpoint-000002", "run/../run"):
        with pytest.raises(UsageError, match="holds a run"):
            refuse_runs(tmp_path / place, "rlcm a")
    for place in ("run/hub", "run/evaluation", ".", "other/final"):
        refuse_runs(tmp_path / place, "rlcm a")
    write(tmp_path / "hub", "config.yaml", "README.md")
    assert not is_run(tmp_path / "hub")
