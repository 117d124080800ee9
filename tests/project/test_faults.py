"""Faults put into runs: nothing is lost, nothing is silent, and the run that goes on ends as one that nobody disturbed.

Long forms, with real kills and full disks: benchmarks/faults/.
"""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import PROMPTS, Listener, brightness, largest_difference, lcm_pipeline, tiny_config

from rlcm.errors import ConfigError, PreflightError, RewardError, RunDirectoryError, TrainingError
from rlcm.learning.optimisation import Optimisation
from rlcm.learning.updates import PolicyGradient
from rlcm.runs import checkpoint as checkpoints
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.runs.serialization import load_state
from rlcm.runs.trackers import Tracker
from rlcm.training import keeping, learner
from rlcm.training import trainer as module
from rlcm.training.evaluate import Evaluator
from rlcm.training.interrupts import Interrupts
from rlcm.training.trainer import Trainer

LORA = "final/pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Leave the report out, which takes longer than a tiny run."""
    monkeypatch.setattr(keeping, "write_report", lambda folder: folder / "report.html")


def trainer(output, *, functions=(brightness,), watcher=None, **changes):
    changes["evaluation"] = {"images": 2, "every": 1, "grid": 2, **changes.get("evaluation", {})}
    config = tiny_config(output, **changes)
    return Trainer(config, model=lcm_pipeline(), rewards=functions, prompts=PROMPTS, watcher=watcher)


def resume(run, *, functions=(brightness,), watcher=None, force=False):
    objects = {"model": lcm_pipeline(), "rewards": functions, "prompts": PROMPTS}
    return Trainer.resume(run, watcher=watcher, force=force, **objects)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a run of two rounds that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "write_report", lambda folder: folder / "report.html")
        return trainer(tmp_path_factory.mktemp("undisturbed")).train()


def same_end(run, undisturbed):
    """Whether a run ended as the undisturbed one: the LoRA, and what is told of every round."""
    assert (run / LORA).read_bytes() == (undisturbed / LORA).read_bytes()
    for name, keys in (
        ("metrics.jsonl", ("round", "reward", "grad_norm", "reward_queries")),
        ("eval.json", ("round", "reward")),
    ):
        texts = [(folder / name).read_text() for folder in (run, undisturbed)]
        rows = [
            json.loads(text)["evaluations"] if name == "eval.json" else list(map(json.loads, text.splitlines()))
            for text in texts
        ]
        assert [[row[key] for key in keys] for row in rows[0]] == [[row[key] for key in keys] for row in rows[1]]
    return True


def before(monkeypatch, owner, name, call, act):
    """Let `act` happen before the n-th call of a function."""
    real, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            act(*arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


def stop(*_):
    signal.raise_signal(signal.SIGTERM)


PHASES = {
    "the first evaluation": (Evaluator, "__call__", 1, 0),
    "sampling": (learner, "rollout", 1, 1),
    "an update": (Optimisation, "step", 1, 1),
    "an evaluation on the way": (Evaluator, "__call__", 2, 1),
    "a checkpoint": (checkpoints, "save_state", 1, 1),
    "the last round": (Optimisation, "step", 2, 2),
    "the end": (keeping, "save_final", 1, 2),
}


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_every_phase(tmp_path, monkeypatch, undisturbed, phase):
    owner, name, call, whole = PHASES[phase]
    listener = Listener()
    made = trainer(tmp_path, watcher=listener)
    before(monkeypatch, owner, name, call, stop)
    run = made.train()
    assert newest_checkpoint(run)[0].round == whole
    assert (run / LORA).exists() == (whole == 2)
    if whole < 2:
        assert listener.notes[-1] == f"stopped after round {whole}; go on with: rlcm train --resume {run}"
        resume(run).train()
    assert same_end(run, undisturbed)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch, undisturbed):
    class Killed(BaseException):
        """As kill -9: nothing is done on the way out."""

    def die(*_):
        raise Killed

    made = trainer(tmp_path)
    with monkeypatch.context() as patch:
        before(patch, checkpoints, "save_state", 1, die)
        patch.setattr(Interrupts, "keep", lambda self: None)
        with pytest.raises(Killed):
            made.train()
    run = tmp_path / "run"
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"round": 2, "rew')
    listener = Listener()
    going_on = resume(run, watcher=listener)
    assert listener.notes[-1] == "going on from the beginning: no checkpoint yet"
    assert not (run / "eval.json").exists()
    assert (run / "metrics.jsonl").read_text() == ""
    assert [path.name for path in (run / "samples").glob("round-*.png")] == ["round-000000.png"]
    going_on.train()
    assert same_end(run, undisturbed)


def test_what_is_newer_than_the_checkpoint_is_cut_back(tmp_path, undisturbed):
    run = trainer(tmp_path).train()
    (run / "checkpoint-000002/state.safetensors").write_bytes(b"")
    resume(run)
    assert [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1]
    assert [look["round"] for look in json.loads((run / "eval.json").read_text())["evaluations"]] == [0, 1]
    assert sorted(path.name for path in (run / "samples").glob("round-*.png")) == ["round-000000.png", "round-000001.png"]
    resume(run).train()
    assert same_end(run, undisturbed)


def test_resuming_what_has_ended_changes_nothing(tmp_path, undisturbed):
    run = trainer(tmp_path).train()
    resume(run).train()
    assert same_end(run, undisturbed)


def test_a_run_that_failed_its_checks_fails_them_again(tmp_path):
    def flat(images, prompts):
        return torch.ones(len(prompts))

    with pytest.raises(PreflightError, match="have the same reward"):
        trainer(tmp_path, functions=[flat]).train()
    with pytest.raises(PreflightError, match="have the same reward"):
        resume(tmp_path / "run", functions=[flat]).train()


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_loses_nothing(tmp_path, monkeypatch, undisturbed):
    """Every file is flushed before it counts, so that refusing the n-th flush stands for a full disk at the n-th write.

    Every third is refused, for the time it takes: a file and then its folder are flushed, so that both have their turns.
    """
    refused = 0
    for number in range(1, 100, 3):
        output = tmp_path / str(number)
        calls = []

        def fsync(descriptor, calls=calls, number=number):
            calls.append(1)
            if len(calls) >= number:  # a full disk stays full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                run = trainer(output).train()
                break
            except RunDirectoryError as error:
                text = str(error)
        assert "No space left on device" in text
        assert "free some space" in text
        refused += 1
        run = output / "run"
        (resume(run) if (run / "config.yaml").exists() else trainer(output)).train()
        assert same_end(run, undisturbed)
    assert refused > 5
    assert same_end(run, undisturbed)


def test_the_third_update_in_a_row_that_is_not_finite_stops_with_a_checkpoint(tmp_path, monkeypatch):
    def spoil(self):
        if made.round_number:
            self.policy.parameters[0].grad = torch.full_like(self.policy.parameters[0], float("nan"))
        return real(self)

    real = Optimisation.gather_gradients
    monkeypatch.setattr(Optimisation, "gather_gradients", spoil)
    listener = Listener()
    made = trainer(tmp_path, watcher=listener, run={"rounds": 6, "save_every": 0})
    with pytest.raises(TrainingError, match=r"3 updates in a row .* optimizer.lr=.*kl_coefficient"):
        made.train()
    monkeypatch.undo()
    kept = newest_checkpoint(tmp_path / "run")[0]
    assert kept.round == 3
    assert kept.state["skipped_in_a_row"] == 2
    assert listener.notes[-1].startswith("kept everything up to round 3; go on with: rlcm train --resume")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_updates"] for row in rows] == [0, 1, 1]


def test_an_error_in_the_middle_of_a_round_keeps_the_state_before_it(tmp_path, monkeypatch, undisturbed):
    """The second optimiser step of round 2 fails: what the first one did must not be in the checkpoint."""

    def bug(*_):
        raise KeyError("a bug of ours")

    two_steps = {"algorithm": {"minibatches": 2}}
    expected = trainer(tmp_path / "expected", **two_steps).train()
    made = trainer(tmp_path / "failing", **two_steps, run={"save_every": 0})
    with monkeypatch.context() as patch:
        before(patch, Optimisation, "step", 4, bug)
        with pytest.raises(KeyError, match="a bug of ours"):
            made.train()
    run = tmp_path / "failing/run"
    states = [load_state(folder / "checkpoint-000001/state.safetensors") for folder in (expected, run)]
    assert all(torch.equal(value, states[1]["adapter"][name]) for name, value in states[0]["adapter"].items())
    assert states[0]["statistics"] == states[1]["statistics"]
    resume(run).train()
    assert same_end(run, expected)


OOM = "CUDA out of memory. Tried to allocate 2.00 GiB"


def test_batches_that_do_not_fit_are_halved_and_the_result_is_the_same(tmp_path, monkeypatch, undisturbed):
    def limited(real, argument, most):
        def call(*arguments, **named):
            if len(arguments[argument]) > most:
                raise torch.OutOfMemoryError(OOM)
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(PolicyGradient, "loss", limited(PolicyGradient.loss, 1, 5))
    monkeypatch.setattr(Evaluator, "_draw", limited(Evaluator._draw, 2, 1))
    listener = Listener()
    run = trainer(tmp_path, watcher=listener).train()
    notes = [note for note in listener.notes if note.startswith("out of memory")]
    assert any("rollout.sample_batch_size=1" in note for note in notes)
    assert any("run.micro_batch_size=4; the results stay the same" in note for note in notes)
    one, other = load_file(run / LORA), load_file(undisturbed / LORA)
    assert max(largest_difference(value, other[name]) for name, value in one.items()) < 1e-5
    sizes = newest_checkpoint(run)[0].state["batch_sizes"]
    assert sizes == {"rollout.sample_batch_size": 1, "run.micro_batch_size": 4}
    assert resume(run).learner.update.micro_batch.size == 4  # or a resumed run would not be bit for bit the same


def test_what_fits_not_even_once_names_the_setting_and_keeps_the_rounds(tmp_path, monkeypatch):
    made = trainer(tmp_path, run={"save_every": 0})
    real = made.learner.update.loss

    def loss(*arguments, **named):
        if made.round_number == 1:
            raise torch.OutOfMemoryError(OOM)
        return real(*arguments, **named)

    made.learner.update.loss = loss
    with pytest.raises(TrainingError, match=r"run.micro_batch_size=1 does not fit either.*model.gradient_checkpointing=true"):
        made.train()
    assert newest_checkpoint(tmp_path / "run")[0].round == 1


def test_a_reward_that_fails_at_any_call_keeps_what_was_learnt(tmp_path, undisturbed):
    for call, whole in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2)):
        calls = []

        def failing(images, prompts, calls=calls, call=call):
            calls.append(1)
            if len(calls) == call:
                raise ZeroDivisionError("a bug of the user's")
            return brightness(images, prompts)

        failing.__name__ = "brightness"
        with pytest.raises(RewardError, match="ZeroDivisionError: a bug of the user's"):
            trainer(tmp_path / str(call), functions=[failing], run={"save_every": 0}).train()
        run = tmp_path / str(call) / "run"
        assert newest_checkpoint(run)[0].round == whole
        resume(run, force=call > 1).train()  # another function: refused once something was measured
        assert same_end(run, undisturbed)


def test_a_tracker_that_fails_stops_nothing(tmp_path, monkeypatch, undisturbed):
    def broken(name, run):
        def fail(metrics, number):
            raise ConnectionError("no network")

        return Tracker(name, fail)

    monkeypatch.setattr(module, "make_tracker", broken)
    run = trainer(tmp_path, run={"tracker": "tensorboard"}).train()
    assert same_end(run, undisturbed)


def test_a_tracker_that_is_not_installed_is_named_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    monkeypatch.setattr(module, "build", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=r"run.tracker=swanlab needs a package .*pip install 'swanlab"):
        trainer(tmp_path, run={"tracker": "swanlab"})
    assert not (tmp_path / "run").exists()


COMMAND = [
    *("-m", "rlcm", "train", "name=run", "sampler.steps=2", "rollout.batch_size=4", "rollout.branches=2"),
    *("evaluation.images=2", "evaluation.grid=2", "run.rounds=2", "run.tracker=none"),
]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
}


def launched(launcher, arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(module.__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], *arguments], env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_a_run_of_two_processes(tmp_path, launcher):
    done = launched(launcher, [*COMMAND, f"output={tmp_path}", "rewards=[jpeg_compressibility]"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("LoRA     ") == 1  # one of the processes talks
    assert (tmp_path / "run" / LORA).exists()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["reward_queries"] for row in rows] == [4, 8]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_a_word(tmp_path):
    (tmp_path / "killing.py").write_text(
        "import os, signal\n"
        "calls = []\n"
        "def reward(images, prompts):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return images.mean((1, 2, 3)).tolist()\n"
    )
    done = launched("torchrun", [*COMMAND, f"output={tmp_path}", f"rewards=[{tmp_path / 'killing.py'}:reward]"])
    assert done.returncode == 1
    text = " ".join(done.stderr.split())
    assert "process 0 of 2 lost the others" in text
    assert "rlcm train --resume" in text
    assert newest_checkpoint(tmp_path / "run")[0].round == 1
