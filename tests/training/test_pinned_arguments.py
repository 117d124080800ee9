"""What the arguments of a reward hold: other files in a folder that it names make it another reward, wherever the folder lies."""

import json
import os
from pathlib import Path

import pytest
from short_runs import metrics_of
from tiny_runs import PROMPTS, Listener, lcm_pipeline, tiny_config

from rlcm.errors import ConfigError
from rlcm.training import pinned_arguments
from rlcm.training.trainer import Trainer

HOME = Path.home()
REWARD = """
from pathlib import Path

class Near:
    growing = ("dump",)

    def __init__(self, references: Path, several: list[Path] = (), kept: Path | None = None, dump: Path | None = None,
                 usual: Path = Path("usual.txt"), by_name: str = "", by_key: dict[str, Path] | None = None):
        self.kept, self.dump = kept, dump

    def __call__(self, images, prompts):
        for made in filter(None, (self.kept, self.dump)):
            Path(made).mkdir(exist_ok=True)
            (Path(made) / str(len(list(Path(made).iterdir())))).write_text("more")
        return images.mean((1, 2, 3))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with the files of a reward and a model."""
    monkeypatch.chdir(tmp_path)
    lcm_pipeline().save_pretrained("model")
    for file, text in {"refs/a.txt": "a", "refs/deep/b.pt": "b", "one.txt": "1", "two.txt": "2", "usual.txt": "u"}.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)
    Path("near.py").write_text(REWARD)
    return tmp_path


def run_of(args):
    config = tiny_config(
        Path("runs"),
        model={"path": "model"},
        prompts=PROMPTS,
        rewards=[{"name": "near.py:Near", "args": args}],
        run={"rounds": 1, "save_every": 1},
    )
    return Trainer(config).train()


ARGUMENTS = {"references": "refs", "several": ["one.txt", "./two.txt"], "by_name": "refs/deep", "by_key": {"one": "one.txt"}}


def write(name, text="other"):
    return lambda: Path(name).write_text(text)


CHANGES = {
    "a file more": (write("refs/c.txt"), ("references",)),
    "a file less": (lambda: os.remove("refs/a.txt"), ("references",)),
    "another name": (lambda: os.rename("refs/a.txt", "refs/c.txt"), ("references",)),
    "of the same size": (write("refs/deep/b.pt", "c"), ("references", "by_name")),
    "one of several": (write("two.txt", "3"), ("several",)),
    "one of a dict": (write("one.txt", "0"), ("several", "by_key")),
    "a default": (write("usual.txt"), ("usual",)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_reward_reads_is_compared(place, what):
    act, named = CHANGES[what]
    run = run_of(ARGUMENTS)
    act()
    with pytest.raises(ConfigError, match="cannot go on as it began") as refused:
        Trainer.resume(run, ["run.rounds=2"])
    assert [name for name in (*ARGUMENTS, "usual") if f"rewards.Near.args.{name}" in str(refused.value)] == sorted(
        named, key=[*ARGUMENTS, "usual"].index
    )


def test_relative_paths_go_on_from_any_folder_and_a_folder_may_move(place, monkeypatch):
    run = (place / run_of(ARGUMENTS)).resolve()
    Path("refs/.DS_Store").write_text("what a file manager leaves")
    os.rename("refs", "moved")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("/refs", "/moved").replace("refs/deep", f"{place}/moved/deep"))
    Path("elsewhere").mkdir()
    os.rename("usual.txt", "elsewhere/usual.txt")
    monkeypatch.chdir("elsewhere")
    listener = Listener()
    Trainer.resume(run, ["run.rounds=2"], watcher=listener).train()
    assert not [note for note in listener.notes if "insist" in note or "compared" in note]
    assert len(metrics_of(run)) == 2


def test_folders_that_a_reward_writes_into_do_not_stop_it(place):
    """One that was not there at first is noted as such; one that is named in `growing` is known by its name."""
    Path("dump").mkdir()
    run = run_of({**ARGUMENTS, "kept": "made", "dump": "dump"})
    for rounds in (2, 3):
        listener = Listener()
        Trainer.resume(run, [f"run.rounds={rounds}"], watcher=listener).train()
        (said,) = (note for note in listener.notes if "compared" in note)
        assert said == (
            "cannot be compared with what was there before: rewards.Near.args.kept (it was not read before, or is not now)"
        )
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"{place}/made", f"{place}/refs"))
    with pytest.raises(ConfigError, match=r"rewards\.Near\.args\.kept"):
        Trainer.resume(run, ["run.rounds=4"])


def test_going_on_from_inside_a_folder_is_not_refused_but_another_argument_is(place, monkeypatch):
    run = (place / run_of(ARGUMENTS)).resolve()
    config = run / "config.yaml"
    whole = config.read_text()
    monkeypatch.chdir("refs")
    Path("usual.txt").write_text("u")
    listener = Listener()
    config.write_text(whole.replace("by_name: refs/deep", f"by_name: {place}/refs/deep"))
    Trainer.resume(run, ["run.rounds=2"], watcher=listener)
    assert any("compared" in note and "references" in note for note in listener.notes)
    monkeypatch.chdir(place)
    for other in ("null", "''", f"{place}/not-there"):
        config.write_text(whole.replace(f"references: {place}/refs", f"references: {other}"))
        with pytest.raises(ConfigError, match=r"rewards\.Near\.args\.references"):
            Trainer.resume(run, ["run.rounds=2"])


def digest(value, output=Path("/nowhere"), is_declared=True):
    return pinned_arguments.of_argument(str(value) if isinstance(value, Path) else value, output, is_declared)


def test_folders_of_more_than_a_reward_are_known_by_their_names(tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "runs").mkdir(parents=True)
    (data / "a").write_text("1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert digest(data).startswith("folder ")
    assert digest(data, data / "runs").startswith("unread "), "the runs are in it"
    (data / "config.json").write_text("{}")
    assert digest(data, data / "runs").startswith("unread ")
    assert digest(data).startswith("folder ")
    monkeypatch.chdir(data)
    assert digest(data).startswith("unread "), "it is the working directory"
    assert digest("/").startswith("unread ")
    assert digest(str(tmp_path)).startswith("unread "), "the folder of a user is in it"
    assert digest(["/", ","]) == pinned_arguments.of_name(["/", ","])


def test_a_word_is_no_folder_unless_the_reward_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train").mkdir()
    Path("train/a").write_text("1")
    Path("cat").write_text("1")
    words = ("train", ["cat", "train"], {"split": "train"})
    for value in words:
        assert digest(value, is_declared=False) == pinned_arguments.of_name(value)
        assert digest(value).startswith(("folder ", "files "))
    assert digest("./train", is_declared=False) == digest("train")
    before = digest(["./train", "red"], is_declared=False)
    assert before.startswith("files ")
    assert before != digest(["./train", "blue"], is_declared=False), "the words beside it count"


def test_of_many_files_all_names_and_sizes_count(tmp_path, monkeypatch):
    monkeypatch.setattr(pinned_arguments, "MOST_FILES", 3)
    for number in range(10):
        (tmp_path / f"{number}").write_text("x")
    (tmp_path / ".git").mkdir()
    before = digest(tmp_path)
    (tmp_path / ".git/index").write_text("what another program writes")
    (tmp_path / "1").write_text("y")  # one that is not read
    assert digest(tmp_path) == before
    found = {before}
    (tmp_path / "7").write_text("xx")
    found.add(digest(tmp_path))
    (tmp_path / "8").rename(tmp_path / "88")
    found.add(digest(tmp_path))
    (tmp_path / "0").write_text("y")  # one that is read
    found.add(digest(tmp_path))
    assert len(found) == 4
    monkeypatch.setattr(pinned_arguments, "_MOST_NAMES", 9)
    assert digest(tmp_path).startswith("value ")


def test_links_are_followed_once_and_what_may_not_be_read_is_said(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/a").write_text("1")
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs/set").symlink_to(tmp_path / "far")
    (tmp_path / "refs/loop").symlink_to(tmp_path / "refs")
    (tmp_path / "refs/nowhere").symlink_to(tmp_path / "not-there")
    before = digest(tmp_path / "refs")
    (tmp_path / "far/a").write_text("2")
    assert digest(tmp_path / "refs") != before

    def refused(file):
        raise PermissionError(13, "Permission denied", str(file))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pinned_arguments.digests, "of_pieces", refused)
        with pytest.raises(PermissionError):
            digest(tmp_path / "refs")
        assert digest(tmp_path / "refs", is_declared=False).startswith("value ")


def test_values_that_name_nothing_count_as_they_are(tmp_path):
    for value in (1, None, "a fox", ["a", 1], {"a": {"b": [2.5]}}, "", [], {}):
        assert digest(value) == digest(value, is_declared=False) == pinned_arguments.of_name(value)
    (tmp_path / "a").write_text("1")
    nested = {"weights": [str(tmp_path / "a"), 2]}
    first = digest(nested, is_declared=False)
    (tmp_path / "a").write_text("2")
    assert first.startswith("files ")
    assert first != digest(nested, is_declared=False)
    assert json.dumps(nested) not in first


def test_what_grows_is_known_by_its_beginning(tmp_path):
    def begun(value):
        return pinned_arguments.of_beginning(value, Path("/nowhere"))

    file = tmp_path / "notes"
    forms = (str(file), [str(file)], {"a": str(file)})
    for missing in (lambda: None, file.touch, lambda: file.write_text("half a line")):
        missing()
        assert [begun(value) for value in forms] == [pinned_arguments.of_name(value) for value in forms]
    file.write_text("first\n")
    before = [begun(value) for value in forms]
    file.write_text("first\nsecond\n")
    assert [begun(value) for value in forms] == before
    file.write_text("other\n")
    assert all(begun(value) != was for value, was in zip(forms, before, strict=True))
    file.write_bytes(b"x" * 200_000)
    assert begun(str(file)).startswith("begins ")
    os.mkfifo(tmp_path / "pipe")
    for value in (str(tmp_path / "pipe"), str(tmp_path), None, 3, [], [1]):
        assert begun(value) == pinned_arguments.of_name(value)


def test_defaults_count_where_they_name_something(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.txt").write_text("1")

    def reward(images, prompts, there: Path = Path("there.txt"), typed: Path = "there.txt", gone: Path = Path("gone"),
               home: Path = HOME, word="there.txt", number: int = 3):  # fmt: skip
        """Score nothing."""

    found = pinned_arguments.defaults(reward, Path("/nowhere"))
    assert list(found) == ["there", "typed"]
    assert all(one.startswith("file ") for one in found.values())
