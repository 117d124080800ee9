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
        assert said == ("cannot be compared with what was there before: rewards.Near.args.kept (it was not there, or not read)")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"{place}/made", f"{place}/refs"))
    with pytest.raises(ConfigError, match=r"rewards\.Near\.args\.kept"):
        Trainer.resume(run, ["run.rounds=4"])


def test_the_folder_of_the_runs_does_not_count(tmp_path):
    runs = tmp_path / "data" / "runs"
    runs.mkdir(parents=True)
    (tmp_path / "data" / "a").write_text("1")
    before = pinned_arguments.of_argument(str(tmp_path / "data"), runs)
    assert before == pinned_arguments.of_name(str(tmp_path / "data")), "a folder with the runs in it is a project, no data"
    inside = pinned_arguments.of_argument(str(runs), tmp_path / "data" / "runs" / "mine")
    assert inside.startswith("value "), "nor is one above them"
    beside = tmp_path / "other"
    beside.mkdir()
    assert pinned_arguments.of_argument(str(beside), runs).startswith("folder ")
    assert pinned_arguments.of_argument("/", runs).startswith("value ")


def test_of_many_files_all_names_and_sizes_count(tmp_path, monkeypatch):
    monkeypatch.setattr(pinned_arguments, "MOST_FILES", 3)
    for number in range(10):
        (tmp_path / f"{number}").write_text("x")
    found = {pinned_arguments.of_argument(str(tmp_path), tmp_path / "elsewhere-not" / "runs")}
    found.add(pinned_arguments.of_argument(str(tmp_path), Path("/nowhere")))
    (tmp_path / "7").write_text("xx")
    found.add(pinned_arguments.of_argument(str(tmp_path), Path("/nowhere")))
    (tmp_path / "8").rename(tmp_path / "88")
    found.add(pinned_arguments.of_argument(str(tmp_path), Path("/nowhere")))
    (tmp_path / "0").write_text("y")  # one that is read
    found.add(pinned_arguments.of_argument(str(tmp_path), Path("/nowhere")))
    assert len(found) == 5
    monkeypatch.setattr(pinned_arguments, "_MOST_NAMES", 9)
    assert pinned_arguments.of_argument(str(tmp_path), Path("/nowhere")).startswith("value ")


def test_values_that_name_nothing_count_as_they_are(tmp_path):
    runs = tmp_path / "runs"
    for value in (1, None, "a fox", ["a", 1], {"a": {"b": [2.5]}}, ""):
        assert pinned_arguments.of_argument(value, runs) == pinned_arguments.of_name(value)
    (tmp_path / "a").write_text("1")
    nested = {"weights": [str(tmp_path / "a"), 2]}
    first = pinned_arguments.of_argument(nested, runs)
    (tmp_path / "a").write_text("2")
    assert first.startswith("files ")
    assert first != pinned_arguments.of_argument(nested, runs)
    assert json.dumps(nested) not in first
