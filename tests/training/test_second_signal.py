"""A second signal keeps the last whole round, whatever the run is doing, and the run goes on as if nothing had been."""

import json
import signal
import threading

import pytest
from short_runs import metrics_of, resume, trainer, without_times
from tiny_runs import Listener, brightness

from rlcm.learning.optimisation import Optimisation
from rlcm.processes.signals import saving
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.training import keeping
from rlcm.training.evaluate import Evaluator
from rlcm.training.interrupts import Interrupts

pytestmark = pytest.mark.usefixtures("_no_report")
LORA = "final/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "write_report", lambda folder: folder / "report.html")
        return trainer(tmp_path_factory.mktemp("undisturbed"), evaluation={"every": 1}, lora={"ema_decay": 0.5}).train()


PHASES = {  # where, at which call, and which round is whole then
    "the first evaluation": (Evaluator, "__call__", 1, None),
    "an update of round 2": (Optimisation, "step", 2, 1),
    "the evaluation after round 1": (Evaluator, "__call__", 2, 1),
    "the end": (keeping, "save_final", 1, 2),
}


def learnt(row):
    """Return what a row says of the round; an evaluation that was made anew stands in eval.json alone."""
    return {key: value for key, value in row.items() if not key.startswith("eval/")}


@pytest.mark.parametrize("phase", PHASES)
def test_a_second_signal_keeps_the_last_whole_round(tmp_path, monkeypatch, undisturbed, phase):
    owner, name, call, whole = PHASES[phase]
    real, calls = getattr(owner, name), []

    def twice(*arguments, **named):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, twice)
    listener = Listener()
    with pytest.raises(KeyboardInterrupt):  # what the signal did before
        trainer(tmp_path, watcher=listener, run={"save_every": 0}, evaluation={"every": 1}, lora={"ema_decay": 0.5}).train()
    monkeypatch.undo()
    monkeypatch.setattr(keeping, "write_report", lambda folder: folder / "report.html")
    run = tmp_path / "run"
    assert any(note.startswith("Ctrl-C: the run ends after this round") for note in listener.notes)
    checkpoint = newest_checkpoint(run)[0]
    assert (checkpoint and checkpoint.round) == whole
    if whole:
        assert [row["round"] for row in metrics_of(run)] == list(range(1, whole + 1))
        assert f"kept everything up to round {whole}; go on with: rlcm train --resume {run}" in listener.notes
    resume(run).train()
    assert (run / LORA).read_bytes() == (undisturbed / LORA).read_bytes()
    rows = [[learnt(row) for row in without_times(metrics_of(place))] for place in (run, undisturbed)]
    assert rows[0] == rows[1]
    looks = [json.loads((place / "eval.json").read_text())["evaluations"] for place in (run, undisturbed)]
    assert [look["reward"] for look in looks[0]] == [look["reward"] for look in looks[1]]


def test_a_thread_saves_once_beside_a_main_one_that_hangs():
    saved = []
    with Interrupts(save=lambda: saved.append(threading.current_thread().name)) as interrupts:
        from rlcm.processes import signals

        for save in signals._savers * 2:
            save()
        assert not interrupts.wanted
    assert saved == ["MainThread"]
    with saving(lambda: None):
        assert len(signals._savers) == 1
    assert signals._savers == []


def test_a_listener_that_cannot_listen_changes_nothing():
    def tell(text):
        raise BrokenPipeError

    with Interrupts(tell) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.wanted


def test_a_hangup_is_noted_unless_it_is_ignored():
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert interrupts.wanted
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupts.wanted
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_failed_start_leaves_its_name_to_the_corrected_run(tmp_path):
    def broken(images, prompts):
        raise NameError("a typo")

    for _ in range(2):
        with pytest.raises(Exception, match="a typo"):
            trainer(tmp_path, functions=[broken]).train()
    (tmp_path / "run/notes.txt").write_text("mine")
    run = trainer(tmp_path, functions=[brightness], run={"rounds": 1}).train()
    assert (run / LORA).is_file()
    assert (run / "notes.txt").read_text() == "mine"
