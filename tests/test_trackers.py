"""Trackers: TensorBoard gets every number, and a tracker that fails stops nothing."""

import logging
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlcm.trackers import NoTracker, TensorBoard, make_tracker


def test_tensorboard_gets_the_metrics(tmp_path):
    tracker = make_tracker("tensorboard", tmp_path)
    for number in (1, 2):
        tracker.log({"reward": number * 0.5, "rewards/bright": 1.0}, number)
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.5), (2, 1.0)]
    assert "rewards/bright" in events.Tags()["scalars"]


def test_a_failing_tracker_is_only_reported(tmp_path, caplog):
    tracker = TensorBoard(tmp_path)
    with caplog.at_level(logging.WARNING):
        tracker.log({"reward": object()}, 3)
    assert "tensorboard failed in round 3" in caplog.text
    tracker.close()


def test_a_tracker_that_cannot_start_is_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_tracker("tensorboard", tmp_path), NoTracker)
    assert "tensorboard cannot start" in caplog.text


def test_none_keeps_nothing(tmp_path):
    tracker = make_tracker("none", tmp_path)
    tracker.log({"reward": 1.0}, 1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []
