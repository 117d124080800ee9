"""Trackers: each gets every number, a resumed run goes on in the same place, and one that fails stops nothing."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlcm.errors import ConfigError
from rlcm.runs.trackers import TrackedRun, make_tracker, require_tracker


def run(folder, first_round=1):
    return TrackedRun(folder, "fox", "animals", {"seed": 3}, first_round)


def test_tensorboard_gets_the_metrics(tmp_path):
    tracker = make_tracker("tensorboard", run(tmp_path))
    for number in (1, 2):
        tracker.log({"reward": number * 0.5, "rewards/bright": 1.0}, number)
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.5), (2, 1.0)]
    assert "rewards/bright" in events.Tags()["scalars"]


def test_a_resumed_run_takes_its_later_rounds_back(tmp_path):
    first = make_tracker("tensorboard", run(tmp_path))
    for number in (1, 2, 3):
        first.log({"reward": 0.0}, number)
    first.close()
    second = make_tracker("tensorboard", run(tmp_path, first_round=2))
    second.log({"reward": 1.0}, 2)
    second.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.0), (2, 1.0)]


class Library(ModuleType):
    """A tracker's package that remembers what it was told."""

    def __init__(self, name, fails=()):
        super().__init__(name)
        self.told, self.fails = [], fails

    def _take(self, what, *arguments, **options):
        if what in self.fails:
            raise ConnectionError(f"{what} went wrong")
        self.told.append((what, arguments, options))

    def init(self, **options):
        self._take("init", **options)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, metrics, step):
        self._take("log", metrics, step)

    def finish(self):
        self._take("finish")


@pytest.mark.parametrize("name", ["wandb", "trackio", "swanlab"])
def test_libraries_get_the_run_and_its_metrics(tmp_path, monkeypatch, name):
    library = Library(name)
    monkeypatch.setitem(sys.modules, name, library)
    tracker = make_tracker(name, run(tmp_path))
    tracker.log({"reward": 0.5}, 7)
    tracker.close()
    (begun, _, options), logged, ended = library.told
    assert begun == "init"
    assert options["project"] == "animals"
    assert options["config"] == {"seed": 3}
    assert options["resume"] == "allow"
    assert options.get("name", options.get("experiment_name")).startswith("fox")
    assert logged == ("log", ({"reward": 0.5}, 7), {})
    assert ended == ("finish", (), {})
    again = run(tmp_path, first_round=8)
    assert again.id == run(tmp_path).id != run(tmp_path / "other").id
    assert len(again.id) == 21


@pytest.mark.parametrize("name", ["wandb", "trackio", "swanlab"])
def test_a_tracker_that_fails_is_reported_once_and_left_alone(tmp_path, monkeypatch, caplog, name):
    library = Library(name, fails=["log"])
    monkeypatch.setitem(sys.modules, name, library)
    tracker = make_tracker(name, run(tmp_path))
    with caplog.at_level(logging.WARNING):
        for number in (3, 4):
            tracker.log({"reward": 1.0}, number)
        tracker.close()
    assert caplog.text.count(f"{name} failed") == 1
    assert "in round 3 (log went wrong); from here on metrics go to metrics.jsonl only" in caplog.text
    assert [what for what, _, _ in library.told] == ["init"]


def test_a_failing_end_is_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", Library("wandb", fails=["finish"]))
    tracker = make_tracker("wandb", run(tmp_path))
    tracker.log({"reward": 1.0}, 1)
    with caplog.at_level(logging.WARNING):
        tracker.close()
    assert "wandb failed at its end (finish went wrong)" in caplog.text


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_cannot_start_is_replaced(tmp_path, monkeypatch, caplog, name):
    if name == "wandb":
        monkeypatch.setitem(sys.modules, "wandb", Library("wandb", fails=["init"]))
    else:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        tracker = make_tracker(name, run(tmp_path))
    tracker.log({"reward": 1.0}, 1)
    tracker.close()
    assert f"{name} cannot start" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_none_keeps_nothing(tmp_path):
    tracker = make_tracker("none", run(tmp_path))
    tracker.log({"reward": 1.0}, 1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("wandb", "pip install 'wandb"),
        ("trackio", "pip install 'trackio"),
        ("swanlab", "pip install 'swanlab"),
        ("tensorboard", "pip install tensorboard,"),
    ],
)
def test_a_missing_package_names_what_brings_it(monkeypatch, name, remedy):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as refused:
        require_tracker(name)
    assert f"run.tracker={name} needs a package that is not installed" in str(refused.value)
    assert remedy in str(refused.value)
    require_tracker("none")
