"""Trainings as processes: started, found again, stopped, resumed; with a script in place of the trainer."""

import contextlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from junk_runs import place
from tiny_runs import tiny_config

from rlcm.errors import RunDirectoryError, UsageError
from rlcm.rewards.build import build_reward
from rlcm.training.config import TrainConfig
from rlcm.ui.first_runs import file_of, own_reward
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
    (folder / "other/metrics.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(UsageError, match="choose another name"):
        jobs.start(TrainConfig(name="other"))
    (folder / "other/metrics.jsonl").write_text("")  # of one that has learnt nothing
    assert jobs.start(TrainConfig(name="other")) == "other"
    assert jobs.start(TrainConfig()).startswith("composition-")


def test_resuming_writes_on_in_the_same_log(folder):
    jobs = jobs_of(folder)
    jobs.start(TrainConfig(name="mine"))
    with pytest.raises(UsageError, match="is being trained at this moment"):
        jobs.resume("mine")
    wait(lambda: "began" in jobs.log("mine"))
    jobs.stop("mine")
    wait(lambda: not jobs.state("mine").alive)
    with pytest.raises(UsageError, match="mine has ended, so there is nothing to stop"):
        jobs.stop("mine")
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


def forge(folder, process, **changed):
    (folder / ".ui").mkdir(parents=True, exist_ok=True)
    note = {"pid": process.pid, "created": process.create_time()} | changed
    (folder / ".ui/mine.json").write_text(json.dumps(note))


def test_a_forged_note_lets_nobody_end_a_process(folder):
    jobs = jobs_of(folder)
    child = psutil.Popen([sys.executable, "-c", WAITS, "train", "--resume", str(folder / "other")])
    try:
        for process, changed in ((psutil.Process(), {}), (child, {}), (psutil.Process(), {"pid": True}), (child, {"pid": -1}),
                                 (child, {"pid": 10**30}), (child, {"pid": 1.0}), (child, {"created": None})):  # fmt: skip
            forge(folder, process, **changed)
            assert not jobs.state("mine").alive
            with pytest.raises(UsageError, match="not being trained by a process that this page started"):
                jobs.stop("mine")
        assert child.is_running()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    "line",
    [["train", "{}/.ui/mine.config.yaml"], ["train", "--resume", "{}/mine"], ["train", "run.rounds=9", "--resume", "{}/mine"]],
)
def test_a_training_is_known_by_its_command_from_wherever_it_was_started(folder, line):
    folder.mkdir(parents=True)
    words = [word.format(folder.name) for word in line]
    child = psutil.Popen([sys.executable, "-c", WAITS, *words], cwd=folder.parent)
    try:
        wait(lambda: child.cmdline()[-1:] == words[-1:])
        forge(folder, child)
        assert jobs_of(folder).state("mine").alive
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "nowhere"])
@pytest.mark.parametrize("ending", ["json", "log"])
def test_what_is_no_file_in_the_pages_own_folder_is_not_waited_for(folder, kind, ending):
    (folder / ".ui").mkdir(parents=True)
    place(folder / f".ui/mine.{ending}", kind)
    jobs = jobs_of(folder)
    assert (jobs.log("mine"), jobs.alive(), jobs.failure("mine")) == ("", [], "")


def test_the_pages_own_files_lead_nowhere_else(folder, tmp_path):
    (tmp_path / "secret").write_text("hunter2\n")
    (folder / ".ui").mkdir(parents=True)
    (folder / ".ui/mine.log").symlink_to(tmp_path / "secret")
    (folder / "mine").mkdir()
    jobs = jobs_of(folder)
    assert jobs.log("mine") == ""
    with pytest.raises(RunDirectoryError, match=r"mine\.log is no file of its own; move it away"):
        jobs.resume("mine")
    assert (tmp_path / "secret").read_text() == "hunter2\n"
    shutil.rmtree(folder / ".ui")
    (folder / ".ui").symlink_to(tmp_path)
    assert not jobs.state("mine").alive
    assert jobs.names() == []
    with pytest.raises(RunDirectoryError, match="is no folder of its own; move it away"):
        jobs.start(TrainConfig(name="other"))


def test_a_training_that_failed_is_listed_until_it_is_forgotten_and_its_name_is_free(folder):
    jobs = jobs_of(folder, FAILS)
    jobs.start(TrainConfig(name="mine"))
    wait(lambda: not jobs.state("mine").alive)
    assert jobs.names() == jobs_of(folder).names() == ["mine"]
    assert jobs_of(folder).failure("mine") == "the reward is NaN;\nmend it."
    jobs.command = (sys.executable, "-c", WAITS)
    jobs.start(TrainConfig(name="mine"))
    with pytest.raises(UsageError, match="stop it first"):
        jobs.forget("mine")
    assert jobs.failure("mine") == ""
    wait(lambda: "began" in jobs.log("mine"))
    jobs.stop("mine")
    wait(lambda: not jobs.state("mine").alive)
    assert jobs.failure("mine") == ""
    jobs.forget("mine")
    assert jobs.names() == []


def test_a_training_that_failed_is_tried_again_as_it_was_asked_for(folder):
    jobs = jobs_of(folder, FAILS)
    name = jobs.start(TrainConfig(name="mine"))
    wait(lambda: jobs.failure(name))
    jobs.retry(name)
    wait(lambda: jobs.log(name).count("the reward is NaN") == 2)
    (folder / "mine").mkdir()
    (folder / "mine/config.yaml").write_text("")
    wait(lambda: not jobs.state(name).alive)
    jobs.retry(name)
    wait(lambda: f"train --resume {folder / 'mine'}" in jobs.log(name))
    wait(lambda: not jobs.state(name).alive)
    (folder / "mine/config.yaml").unlink()
    jobs.forget(name)
    with pytest.raises(UsageError, match="is gone, which said what was asked for"):
        jobs.retry(name)


def test_a_round_is_tried_and_costs_are_those_of_all(tmp_path, tiny_model):
    config = tiny_config(tmp_path, model={"path": str(tiny_model)}, run={"rounds": 50}, evaluation={"images": 4, "every": 10})
    cost = Jobs(tmp_path / "runs").trial(config)
    assert cost.seconds > 0
    assert cost.memory > 1e8
    assert "of main memory here, by a round that was just tried" in cost.words()
    assert list(tmp_path.iterdir()) == []
    assert jobs_of(tmp_path / "runs", FAILS).trial(config) is None


def test_a_reward_of_ones_own_is_written_once_and_works(tmp_path):
    config = own_reward(tmp_path)
    assert build_reward(config.rewards[0])(torch.rand(2, 3, 8, 8), ["", ""]).shape == (2,)
    file_of(tmp_path).write_text("mine")
    assert own_reward(tmp_path) == config
    assert file_of(tmp_path).read_text() == "mine"


def test_a_training_that_was_killed_says_so(folder):
    jobs = jobs_of(folder, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    jobs.start(TrainConfig(name="mine"))
    wait(lambda: not jobs.state("mine").alive)
    assert jobs.failure("mine").startswith("It was ended by signal 9, as the system does where memory runs out")


def test_trainings_that_start_at_once_have_names_of_their_own(folder):
    pages = [jobs_of(folder), jobs_of(folder)]
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda i: pages[i % 2].start(TrainConfig()), range(4)))
    assert len(set(names)) == 4
    assert sorted(names) == pages[0].alive()


def test_a_check_says_what_the_training_would(folder):
    jobs_of(folder, "import sys; assert sys.argv[1] == 'train' and sys.argv[3] == '--check'; open(sys.argv[2])").check(
        TrainConfig()
    )
    with pytest.raises(UsageError, match=r"^the reward is NaN;\nmend it\.$"):
        jobs_of(folder, FAILS).check(TrainConfig())
    with pytest.raises(UsageError, match="KeyError: 'oops'"):
        jobs_of(folder, BREAKS).check(TrainConfig())
    (folder / "mine").write_text("")
    with pytest.raises(UsageError, match="choose another name"):
        jobs_of(folder).check(TrainConfig(name="mine"))
    assert not [name for name in os.listdir(folder / ".ui") if name != ".lock"]


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


@pytest.mark.parametrize("ending", ["signal.SIG_DFL", "lambda *_: sys.exit(143)"])
def test_one_that_is_stopped_while_it_starts_was_stopped_and_did_not_fail(folder, ending):
    jobs = jobs_of(
        folder, f"import signal, sys, time; signal.signal(signal.SIGTERM, {ending}); print('began', flush=True); time.sleep(60)"
    )
    jobs.start(TrainConfig(name="mine"))
    wait(lambda: "began" in jobs.log("mine"))
    assert not jobs.was_stopped("mine")
    jobs.stop("mine")
    wait(lambda: not jobs.state("mine").alive)
    wait(lambda: jobs.was_stopped("mine"))
    assert jobs.failure("mine") == ""


def test_one_that_ends_so_unasked_failed(folder):
    jobs = jobs_of(folder, "import sys; sys.exit(143)")
    jobs.start(TrainConfig(name="mine"))
    wait(lambda: not jobs.state("mine").alive)
    wait(lambda: "exit code 143" in jobs.failure("mine"))
    assert not jobs.was_stopped("mine")
