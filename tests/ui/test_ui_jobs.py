"""Trainings as processes: started, found again, stopped, resumed; with a script in place of the trainer."""

import contextlib
import json
import sys
import time

import psutil
import pytest

from rlcm.errors import UsageError
from rlcm.training.config import TrainConfig
from rlcm.ui.jobs import Jobs

PATIENT = """
import signal, time
stopped = []
def stop(*_):
    stopped.append(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGTERM, stop)
print("began", flush=True)
while not stopped:
    time.sleep(0.02)
time.sleep(0.5)
print("stopped after round 3", flush=True)
"""
WAITS = """
import signal, sys, time
print("began", *sys.argv[1:], flush=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
while not stopped:
    time.sleep(0.02)
print("stopped after round 3", flush=True)
"""
FAILS = "import sys; print('round 1/9'); sys.stderr.write('error: the reward is NaN;\\nmend it.\\n'); sys.exit(1)"
BREAKS = "print('round 1/9'); raise KeyError('oops')"


def jobs_of(folder, script=WAITS):
    return Jobs(folder, (sys.executable, "-c", script))


def wait(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "runs"
    for child in psutil.Process().children():  # those that a failed test has left
        with contextlib.suppress(psutil.Error):
            if "began" in " ".join(child.cmdline()):
                child.kill()


def test_a_training_is_started_followed_and_stopped(folder):
    jobs = jobs_of(folder)
    name = jobs.start(TrainConfig(name="mine", seed=3))
    assert name == "mine"
    assert jobs.state(name).alive
    assert not jobs.state(name).stopping
    assert jobs.alive() == ["mine"]
    asked = (folder / ".ui" / "mine.config.yaml").read_text()
    assert "seed: 3" in asked
    assert f"output: {folder}" in asked
    wait(lambda: "began" in jobs.log(name))
    assert jobs.log(name).splitlines()[0] == f"$ rlcm train {folder}/.ui/mine.config.yaml"
    jobs.stop(name)
    wait(lambda: not jobs.state(name).alive)
    assert jobs.log(name).splitlines()[-1] == "stopped after round 3"
    assert jobs.failure(name) == ""
    assert jobs.alive() == []


def test_a_second_stop_does_not_cut_the_saving_short(folder):
    jobs = jobs_of(folder, PATIENT)
    jobs.start(TrainConfig(name="mine"))
    wait(lambda: "began" in jobs.log("mine"))
    jobs.stop("mine")
    jobs_of(folder, PATIENT).stop("mine")
    wait(lambda: not jobs.state("mine").alive)
    assert jobs.log("mine").splitlines()[-1] == "stopped after round 3"


def test_the_page_finds_trainings_again_and_says_that_they_stop(folder):
    first = jobs_of(folder)
    first.start(TrainConfig(name="mine"))
    wait(lambda: "began" in first.log("mine"))
    again = jobs_of(folder)
    assert again.state("mine").alive
    again.stop("mine")
    assert again.state("mine").stopping or not again.state("mine").alive
    wait(lambda: not first.state("mine").alive)
    assert not again.state("mine").alive


def test_a_name_is_taken_once(folder):
    jobs = jobs_of(folder)
    jobs.start(TrainConfig(name="mine"))
    with pytest.raises(UsageError, match="there is a run of that name already"):
        jobs.start(TrainConfig(name="mine"))
    (folder / "other").mkdir()
    with pytest.raises(UsageError, match="choose another name"):
        jobs.start(TrainConfig(name="other"))
    assert jobs.start(TrainConfig()).startswith("jpeg_compressibility-")


def test_resuming_writes_on_in_the_same_log(folder):
    jobs = jobs_of(folder)
    jobs.start(TrainConfig(name="mine"))
    with pytest.raises(UsageError, match="is being trained at this moment"):
        jobs.resume("mine")
    wait(lambda: "began" in jobs.log("mine"))
    jobs.stop("mine")
    wait(lambda: not jobs.state("mine").alive)
    jobs.resume("mine")
    wait(lambda: f"began train --resume {folder}/mine" in jobs.log("mine"))
    assert "stopped after round 3" in jobs.log("mine")
    assert not jobs.state("mine").stopping


def test_what_is_not_ours_is_not_stopped(folder):
    with pytest.raises(UsageError, match="not being trained by a process that this page started"):
        jobs_of(folder).stop("mine")
    (folder / ".ui").mkdir(parents=True)
    own = psutil.Process()
    (folder / ".ui" / "mine.json").write_text(json.dumps({"pid": own.pid, "created": own.create_time() - 100}))
    assert not jobs_of(folder).state("mine").alive  # the number is another's by now
    with pytest.raises(UsageError, match="not the name of a run"):
        jobs_of(folder).state("../mine")
    (folder / ".ui" / "mine.json").write_text("{broken")
    assert not jobs_of(folder).state("mine").alive


@pytest.mark.parametrize(("script", "error"), [(FAILS, "the reward is NaN;\nmend it."), (BREAKS, "KeyError: 'oops'")])
def test_the_error_that_ended_a_training(folder, script, error):
    jobs = jobs_of(folder, script)
    jobs.start(TrainConfig(name="mine"))
    wait(lambda: not jobs.state("mine").alive)
    assert jobs.failure("mine") == error
    jobs.command = (sys.executable, "-c", "print('round 9/9')")
    jobs.resume("mine")
    wait(lambda: not jobs.state("mine").alive)
    assert jobs.failure("mine") == ""  # that was the time before


def test_a_long_log_is_shown_from_a_whole_line(folder):
    (folder / ".ui").mkdir(parents=True)
    (folder / ".ui" / "mine.log").write_text("".join(f"line {i}\n" for i in range(10_000)))
    log = jobs_of(folder).log("mine", most=1_000)
    assert len(log) <= 1_000
    assert log.splitlines()[0].startswith("line 9")
    assert jobs_of(folder).log("none") == ""
