"""What rewards do wrong, in runs: others' images and results stay as they are, and every whole round is kept."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from short_runs import metrics_of, resume, trainer, without_times
from tiny_runs import brightness

from rlcm.errors import RewardError
from rlcm.rewards import boundary
from rlcm.runs.checkpoint import newest_checkpoint

pytestmark = pytest.mark.usefixtures("_no_report")


class At:
    """A reward that acts in and after a given call."""

    def __init__(self, call, act):
        self.calls, self.call, self.act = 0, call, act

    def __call__(self, images, prompts):
        self.calls += 1
        values = brightness(images, prompts)
        if self.calls >= self.call:
            self.act(images)
        return values


def _exit(images):
    raise SystemExit(0)


def test_an_exit_within_a_round_keeps_the_rounds_before_it(tmp_path):
    with pytest.raises(RewardError, match=r"reward At raised SystemExit: 0 .*asked about 6 images, of"):
        trainer(tmp_path, functions=[At(3, _exit)], run={"save_every": 0}).train()  # the base model, round 1, round 2
    assert newest_checkpoint(tmp_path / "run")[0].round == 1
    again = resume(tmp_path / "run", functions=[At(9, _exit)], force=True)  # it was made otherwise, which is said
    again.train()
    assert again.round_number == 2


def _seed(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _vandalise(images):
    own = images.numpy()
    own *= 255
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    _seed(0)
    np.seterr(all="raise")
    torch.set_grad_enabled(True)


def test_a_run_is_the_same_whatever_a_reward_does_to_its_pictures_and_the_process(tmp_path, monkeypatch):
    """Seeding the global generators changes nothing either: so they need not be put back."""
    monkeypatch.chdir(tmp_path)
    runs = {}
    for name, act in {"good": lambda images: None, "bad": _vandalise}.items():
        made = trainer(name, functions=[At(1, act), brightness], rollout={"batch_size": 6, "sample_batch_size": 2})
        made.train()
        runs[name] = tmp_path / name / "run"
    good, bad = (without_times(metrics_of(run)) for run in runs.values())
    assert good == bad
    good, bad = (json.loads((run / "eval.json").read_text()) for run in runs.values())
    assert [e["guard"] for e in good["evaluations"]] == [e["guard"] for e in bad["evaluations"]]
    pictures = [sorted((run / "samples").rglob("*.png")) for run in runs.values()]
    assert len(pictures[0]) == len(pictures[1]) > 0
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*pictures, strict=True))


def test_a_wish_to_stop_ends_a_run_whose_reward_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(boundary, "STOP_SECONDS", 0.1)

    def hang(images):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(RewardError, match="reward At was given up: the run is to stop"):
        trainer(tmp_path, functions=[At(3, hang)], run={"save_every": 0}).train()
    assert time.monotonic() - began < 50
    assert newest_checkpoint(tmp_path / "run")[0].round == 1


class Leaving:
    """A watcher that ends the program after a round."""

    def __init__(self, error):
        self.notes, self.error = [], error

    def note(self, text):
        self.notes.append(text)

    def round(self, metrics, rounds):
        if metrics["round"] == 2:
            raise self.error


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_a_watcher_that_ends_the_program_keeps_every_round(tmp_path, error):
    watcher = Leaving(error)
    with pytest.raises(type(error)):
        trainer(tmp_path, watcher=watcher, run={"save_every": 0, "rounds": 3}).train()
    assert newest_checkpoint(tmp_path / "run")[0].round == 2
    assert [row["round"] for row in metrics_of(tmp_path / "run")] == [1, 2]
    assert sum("kept everything up to round 2; go on with: rlcm train --resume" in note for note in watcher.notes) == 1
    again = resume(tmp_path / "run")
    again.train()
    assert [row["round"] for row in metrics_of(tmp_path / "run")] == [1, 2, 3]
