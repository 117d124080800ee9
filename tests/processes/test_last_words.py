"""Processes that lost each other: every wait ends, and who gives no sign of life is named."""

import threading
import time

import pytest
import torch.distributed as dist

from rlcm.processes import last_words
from rlcm.processes.last_words import LastWords, within


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(last_words, "PATIENCE_SECONDS", 0.3)


class Frozen:
    """A store whose process was stopped: it never answers."""

    def __getattr__(self, name):
        return lambda *_: threading.Event().wait()


def test_a_store_that_never_answers_is_its_process_being_silent(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    started = time.monotonic()
    words = LastWords(Frozen(), 1, 3)
    assert words.hear() == (None, [0])
    assert words.tell("an error") is None
    assert time.monotonic() - started < 3
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # then it is torchrun's
    assert words.hear() == (None, [])


def test_who_says_nothing_is_named():
    store = dist.HashStore()
    others = [threading.Thread(target=LastWords(store, rank, 4).hear) for rank in (1, 3)]
    for other in others:
        other.start()
    assert LastWords(store, 0, 4).hear() == (None, [2])
    for other in others:
        other.join()


def test_the_first_error_is_heard_by_all():
    store = dist.HashStore()
    first, second, third = (LastWords(store, rank, 3) for rank in range(3))
    assert second.tell("of 1") is None
    assert third.tell("of 2") == "of 1"
    assert first.hear() == ("of 1", [])


def test_without_a_store_nothing_is_said():
    assert LastWords(None, 0, 2).tell("x") is None
    assert LastWords(None, 0, 2).hear() == (None, [])


def test_within():
    assert within(5, lambda: 3) == 3
    with pytest.raises(RuntimeError, match=r"no answer within 0\.1 s"):
        within(0.1, threading.Event().wait)
    with pytest.raises(KeyError, match="a bug"):
        within(5, lambda: {}["a bug"])
