"""Runs: what they leave behind, that they learn, that they go on bit for bit, and what happens when something fails."""

import errno
import json
import os
import re
import signal
import time

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from tiny_runs import PROMPTS, STEPS, Listener, brightness, largest_difference, lcm_pipeline, tiny_config

from rlcm.errors import (
    CheckpointError,
    ConfigError,
    MissingFileError,
    PreflightError,
    RewardError,
    RunDirectoryError,
    SamplerError,
)
from rlcm.policy.adapter import save_lora
from rlcm.report import read_run, write_report
from rlcm.rewards import RewardMix, RewardPart, RewardSettings, build_reward
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.runs.rundir import RunDirectory
from rlcm.runs.serialization import load_state
from rlcm.training import keeping
from rlcm.training import trainer as module
from rlcm.training.config import load_config
from rlcm.training.final import WEIGHTS_NAME, tuned_weights
from rlcm.training.trainer import Trainer

TIMES = ("seconds", "images_per_second", "time/", "reward_wait_share")


@pytest.fixture(autouse=True)
def _no_report(request, monkeypatch):
    """Leave the report out, which takes longer than a tiny run; one test has it."""
    if "with_report" not in request.fixturenames:
        monkeypatch.setattr(keeping, "write_report", lambda folder: folder / "report.html")


@pytest.fixture
def with_report():
    """Ask for the report."""


def trainer(output, *, functions=(brightness,), watcher=None, **changes):
    """Return the trainer of a short run; without functions, its rewards are those of the configuration."""
    config = tiny_config(output, **changes)
    return Trainer(config, model=lcm_pipeline(), rewards=functions, prompts=PROMPTS, watcher=watcher)


def resume(run, *, changes=(), functions=(brightness,), watcher=None):
    return Trainer.resume(run, changes, model=lcm_pipeline(), rewards=functions, prompts=PROMPTS, watcher=watcher)


def without_times(metrics):
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in metrics]


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_behind(tmp_path, with_report):
    listener = Listener()
    made = trainer(tmp_path, watcher=listener, evaluation={"every": 1, "images": 5, "grid": 4}, run={"tracker": "tensorboard"})
    run = made.train()
    assert run == tmp_path / "run"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert ("best/pytorch_lora_weights.safetensors" in names) == (made.watch.best["round"] > 0)
    assert names - events - {"best/pytorch_lora_weights.safetensors", "samples/prompts.png", "samples/prompts.json"} == {
        ".lock",
        "config.yaml",
        "metrics.jsonl",
        "eval.json",
        "report.html",
        "final/pytorch_lora_weights.safetensors",
        "final/README.md",
        *(f"checkpoint-{n:06d}/{file}" for n in (1, 2) for file in ("state.safetensors", "checksums.json")),
        *(f"samples/round-{n:06d}.{kind}" for n in (0, 1, 2) for kind in ("png", "json")),
    }
    assert load_config(run / "config.yaml") == made.config
    rows = metrics_of(run)
    assert [row["round"] for row in rows] == [1, 2]
    assert [row["reward_queries"] for row in rows] == [6, 12]
    assert [row["network_calls"] for row in rows] == [6 * STEPS, 12 * STEPS]
    assert rows[0]["ratio_deviation_max"] < 1e-5
    assert rows[0]["rewards/brightness"] == rows[0]["reward"]
    found = json.loads((run / "eval.json").read_text())
    assert [(look["name"], look["round"]) for look in found["evaluations"]] == [("base", 0), ("tuned", 1), ("tuned", 2)]
    assert Image.open(run / "samples/round-000002.png").size == (32, 32)
    assert "reward" in (run / "report.html").read_text()
    assert any(note.startswith("checked: ratio off 1 by") for note in listener.notes)
    with safe_open(run / "final/pytorch_lora_weights.safetensors", "pt") as file:
        assert all(name.startswith("unet.") for name in file.keys())  # noqa: SIM118 (not a dict)


def test_objects_are_named_in_the_configuration(tmp_path):
    class Judge:
        def __call__(self, images, prompts):
            return images[:, 0].mean((1, 2))

    made = trainer(tmp_path, functions=[brightness, brightness, Judge()], name="")
    assert made.config.name.startswith("brightness-2")
    assert made.config.prompts == tuple(PROMPTS)
    assert made.config.model.path == "LatentConsistencyModelPipeline"
    labels = {reward.label: reward.name for reward in made.config.rewards}
    assert labels["brightness"] == labels["brightness-2"] == "tiny_runs:brightness"
    assert labels["Judge"].endswith("Judge()")
    written = yaml.safe_load(made.config.dump())
    assert [reward["label"] for reward in written["rewards"]] == ["brightness", "brightness-2", "Judge"]


def test_a_resumed_run_that_lacks_its_objects_says_so(tmp_path):
    run = trainer(tmp_path, functions=[lambda images, prompts: images.mean((1, 2, 3))], run={"rounds": 1}).train()
    with pytest.raises(ConfigError, match="lambda"):
        Trainer.resume(run, model=lcm_pipeline())
    with pytest.raises(MissingFileError, match="LatentConsistencyModelPipeline"):
        Trainer.resume(run, rewards=[brightness])


EVERYTHING = {
    "lora": {"ema_decay": 0.9},
    "algorithm": {
        "dense_every": 1,
        "kl_coefficient": 0.1,
        "kl_target": 1e-12,
        "inner_epochs": 2,
        "minibatches": 2,
        "clip_range": 0.01,
    },
    "optimizer": {"lr": 1e-3, "schedule": "linear"},
    "evaluation": {"every": 3},
    "rewards": [{"name": "brightness", "normalise": True}, {"name": "sharpness", "weight": -0.1}],
    "run": {"rounds": 6},
}


def test_six_rounds_are_three_and_three_bit_for_bit(tmp_path):
    straight = trainer(tmp_path / "a", functions=None, **EVERYTHING).train()
    stopper = Listener(3, lambda: signal.raise_signal(signal.SIGINT))
    halted = trainer(tmp_path / "b", functions=None, watcher=stopper, **EVERYTHING).train()
    assert any("stopped after round 3" in note for note in stopper.notes)
    assert not (halted / "final").exists()
    assert len(metrics_of(halted)) == 3
    assert resume(halted, functions=None).train() == halted

    states = [load_state(run / "checkpoint-000006/state.safetensors") for run in (straight, halted)]
    for part in ("adapter", "average"):
        assert states[0][part].keys() == states[1][part].keys()
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    optimisers = [state["optimizer"] for state in states]
    assert optimisers[0]["param_groups"] == optimisers[1]["param_groups"]
    for index, moments in optimisers[0]["state"].items():
        assert all(torch.equal(value, optimisers[1]["state"][index][name]) for name, value in moments.items())
    assert states[0]["statistics"] == states[1]["statistics"]
    assert states[0]["kl_coefficient"] == states[1]["kl_coefficient"] > 0.1
    assert states[0]["rewards"] == states[1]["rewards"]
    assert set(states[0]["rewards"]["training"]) == {"brightness"}
    rows = [metrics_of(run) for run in (straight, halted)]
    assert without_times(rows[0]) == without_times(rows[1])
    assert rows[0][5]["reward_queries"] == 6 * 18  # every trajectory has a final image and two predicted ones
    assert [row["lr"] for row in rows[0]] == pytest.approx([1e-3 * (1 - i / 6) for i in range(6)])
    assert not all(torch.equal(value, states[0]["average"][name]) for name, value in states[0]["adapter"].items())
    looks = [json.loads((run / "eval.json").read_text())["evaluations"] for run in (straight, halted)]
    assert [look["reward"] for look in looks[0]] == [look["reward"] for look in looks[1]]
    assert len(looks[0]) == 3
    finals = [(run / "final/pytorch_lora_weights.safetensors").read_bytes() for run in (straight, halted)]
    assert finals[0] == finals[1]


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(tmp_path):
    run = trainer(tmp_path).train()
    assert len(metrics_of(run)) == 2
    file = run / "checkpoint-000002/state.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    listener = Listener()
    going_on = resume(run, watcher=listener)
    assert going_on.round_number == 1
    assert any("checkpoint-000002 is damaged" in n and "going on from checkpoint-000001" in n for n in listener.notes)
    assert len(metrics_of(run)) == 1
    before = file.read_bytes()
    going_on.train()
    assert [row["round"] for row in metrics_of(run)] == [1, 2]
    assert file.read_bytes() != before
    assert newest_checkpoint(run)[0].round == 2


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("rank: 4", "rank: 3"))
    with pytest.raises(CheckpointError, match="does not fit the run's configuration"):
        resume(run)
    (run / "config.yaml").write_text(text.replace("ema_decay: 0.0", "ema_decay: 0.5"))
    with pytest.raises(CheckpointError, match="does not fit the run's configuration"):
        resume(run)


class Failing:
    """A reward that is fine until a given call."""

    def __init__(self, call, how):
        self.calls, self.call, self.how = 0, call, how

    def __call__(self, images, prompts):
        self.calls += 1
        values = brightness(images, prompts)
        if self.calls != self.call:
            return values
        if self.how == "raises":
            raise ZeroDivisionError("a bug of the user's")
        return values[:-1] if self.how == "shape" else torch.where(torch.arange(len(values)) == 1, float("nan"), values)


MESSAGES = {
    "raises": "ZeroDivisionError: a bug",
    "shape": r"returned the shape \[5\] for 6 images",
    "nan": "returned nan for image 1",
}


@pytest.mark.parametrize("how", MESSAGES)
def test_a_reward_that_fails_in_round_two_keeps_round_one(tmp_path, how):
    # Call 1 is the evaluation of the base model, call 2 the first round.
    with pytest.raises(RewardError, match=f"reward Failing.*{MESSAGES[how]}"):
        trainer(tmp_path, functions=[Failing(3, how)], run={"save_every": 0}).train()
    run = tmp_path / "run"
    assert newest_checkpoint(run)[0].round == 1
    assert len(metrics_of(run)) == 1
    assert resume(run).train() == run
    assert [row["round"] for row in metrics_of(run)] == [1, 2]
    assert (run / "final/pytorch_lora_weights.safetensors").exists()


def test_a_reward_that_fails_in_an_evaluation_keeps_the_rounds(tmp_path):
    with pytest.raises(RewardError, match="a bug of the user's"):
        trainer(tmp_path, functions=[Failing(4, "raises")], run={"save_every": 0}).train()  # after the last round
    assert newest_checkpoint(tmp_path / "run")[0].round == 2


def test_images_that_could_not_be_scored_drop_out(tmp_path):
    made = trainer(tmp_path, algorithm={"minibatches": 2})
    made.parts.rewards = RewardMix([RewardPart("flaky", Failing(1, "nan"), on_failure="skip")])
    found = made.round()
    assert found["dropped_images"] == 1
    assert found["reward"] == pytest.approx(found["rewards/flaky"])
    assert found["skipped_updates"] == 0


def test_a_constant_reward_is_refused_before_learning(tmp_path):
    made = trainer(tmp_path, functions=[lambda images, prompts: torch.ones(len(prompts))])
    before = [p.detach().clone() for p in made.parts.policy.parameters]
    with pytest.raises(PreflightError, match=r"all 6 images of the first round have the same reward \(1\.0\)"):
        made.train()
    assert all(torch.equal(p, b) for p, b in zip(made.parts.policy.parameters, before, strict=True))


def test_a_sampler_without_noise_is_refused(tmp_path):
    with pytest.raises(SamplerError, match="draws no noise"):
        trainer(tmp_path, sampler={"steps": 1})
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused_before_anything_is_written(tmp_path):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        trainer(tmp_path).train()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_output_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="choose another folder with output="):
        trainer(tmp_path / "file").train()


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_disk_that_fills_up_while_saving_keeps_the_last_checkpoint(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    listener = Listener(2, lambda: monkeypatch.setattr(os, call, full))
    with pytest.raises(RunDirectoryError, match=r"No space left on device.*free some space"):
        trainer(tmp_path, watcher=listener, run={"rounds": 3}).train()
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path / "run")[0].round == 1
    assert [file.name for file in (tmp_path / "run").glob(".*")] == [".lock"]


def test_a_finished_run_goes_on_for_longer(tmp_path):
    straight = trainer(tmp_path / "a", run={"rounds": 3}).train()
    run = trainer(tmp_path / "b", run={"rounds": 2}).train()
    with pytest.raises(ConfigError, match=r"--resume optimizer\.lr=1: a run goes on with its own settings"):
        resume(run, changes=["optimizer.lr=1"])
    assert resume(run, changes=["run.rounds=3"]).train() == run
    assert yaml.safe_load((run / "config.yaml").read_text())["run"]["rounds"] == 3
    assert [row["round"] for row in metrics_of(run)] == [1, 2, 3]
    finals = [(folder / "final/pytorch_lora_weights.safetensors").read_bytes() for folder in (straight, run)]
    assert finals[0] == finals[1]


def test_a_run_that_goes_on_and_is_stopped_tells_of_the_weights_that_it_has(tmp_path, with_report):
    run = trainer(tmp_path, run={"rounds": 2}, evaluation={"every": 1}).train()
    weights = (run / "final" / WEIGHTS_NAME).read_bytes()
    stopper = Listener(3, lambda: signal.raise_signal(signal.SIGINT))
    assert resume(run, changes=["run.rounds=5"], watcher=stopper).train() == run
    looks = json.loads((run / "eval.json").read_text())
    assert [look["round"] for look in looks["evaluations"]] == [0, 1, 2, 3]
    assert looks["final_round"] == 2
    assert (run / "final" / WEIGHTS_NAME).read_bytes() == weights
    found = read_run(run)
    assert found.outcome["round"] == found.pairs(1)[0].after.round == 2
    assert "The LoRA of round 3: final/ has that of round 2" in write_report(run).read_text()
    resume(run)  # what a second trainer writes when it takes the run up
    assert json.loads((run / "eval.json").read_text())["final_round"] == 2
    resume(run, changes=["run.rounds=3"]).train()
    assert json.loads((run / "eval.json").read_text())["final_round"] == 3
    assert (run / "final" / WEIGHTS_NAME).read_bytes() != weights
    assert not read_run(run).missing


def test_a_run_without_its_result_says_how_to_end_it(tmp_path):
    stopper = Listener(2, lambda: signal.raise_signal(signal.SIGINT))
    run = trainer(tmp_path, watcher=stopper, run={"rounds": 9}).train()
    with pytest.raises(
        MissingFileError, match=rf"go on with `rlcm train --resume {run}`, or end it at once with .* run\.rounds=2`"
    ):
        tuned_weights(run)
    resume(run, changes=["run.rounds=2"]).train()
    assert tuned_weights(run).is_file()
    assert len(metrics_of(run)) == 2


def test_a_penalty_is_reported_as_one(tmp_path):
    run = trainer(tmp_path, functions=None, rewards=[{"name": "sharpness", "weight": -2}], run={"rounds": 1}).train()
    found = json.loads((run / "eval.json").read_text())
    assert found["primary_metric"] == {"label": "sharpness", "better": "lower", "penalty": True}
    metric = read_run(run).metric
    look = found["evaluations"][0]
    assert metric.lower_is_better
    assert metric.interval(look)[0] == look["rewards"]["sharpness"]["mean"] > 0 > look["reward"]["mean"]
    small = RewardPart("size", build_reward(RewardSettings(name="jpeg_compressibility")), -1.0)
    assert RewardMix([small]).primary_metric == {"label": "JPEG size", "unit": "kB", "better": "higher", "penalty": True}
    assert RewardMix([small._replace(weight=2.0)]).primary_metric == RewardMix([small._replace(weight=2.0)]).display
    assert RewardMix([small, small._replace(label="again")]).primary_metric is None


def test_the_card_of_the_weights_has_the_code_for_them(tmp_path, monkeypatch):
    lcm_pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    config = tiny_config("runs", model={"path": "model"}, prompts=PROMPTS, run={"rounds": 1})
    run = Trainer(config, rewards=[brightness]).train()
    code = re.search(r"```python\n(.*?)```", (run / "final/README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(run)
    exec(code, {})  # started in the run's folder, which the model's path does not count from
    with Image.open("picture.png") as picture:
        assert picture.size == (16, 16)


def test_a_finished_run_is_given_its_best_weights(tmp_path):
    run = trainer(tmp_path, run={"rounds": 3}, evaluation={"every": 1}).train()
    looks = json.loads((run / "eval.json").read_text())["evaluations"]
    best = max((look for look in looks if look["round"]), key=lambda look: look["reward"]["mean"])["round"]
    file = run / "final" / "pytorch_lora_weights.safetensors"
    last = file.read_bytes()
    assert resume(run, changes=["evaluation.final=best"]).train() == run
    assert file.read_bytes() == (run / "best" / file.name).read_bytes()
    assert json.loads((run / "eval.json").read_text())["final_round"] == best
    assert resume(run, changes=["evaluation.final=last"]).train() == run
    assert file.read_bytes() == last
    assert len(metrics_of(run)) == 3


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    before = (run / "metrics.jsonl").read_bytes()
    held = RunDirectory(run).hold()
    with pytest.raises(RunDirectoryError, match="is being trained by another process"):
        resume(run, changes=["run.rounds=2"])
    assert (run / "metrics.jsonl").read_bytes() == before
    held.release()
    going = resume(run, changes=["run.rounds=2"])
    held = RunDirectory(run).hold()
    with pytest.raises(RunDirectoryError, match="stop it there with Ctrl-C"):
        going.train()
    held.release()
    going.train()
    assert len(metrics_of(run)) == 2


def test_resuming_what_is_not_there_says_so(tmp_path):
    with pytest.raises(MissingFileError, match="holds no run to go on with"):
        Trainer.resume(tmp_path)


def test_it_learns(tmp_path):
    made = trainer(
        tmp_path,
        lora={"target_modules": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_out"]},
        rollout={"batch_size": 32, "branches": 8},
        algorithm={"advantage": "leave_one_out", "inner_epochs": 4, "clip_range": 0.1},
        optimizer={"lr": 3e-2},
        evaluation={"images": 16},
        run={"rounds": 8, "save_every": 0},
    )
    made.train()
    before, after = made.evaluations[0]["reward"], made.evaluations[-1]["reward"]
    assert after["mean"] > before["mean"] + 3 * before["ci95"]


@pytest.mark.parametrize(
    ("rollout", "algorithm"),
    [
        ({}, {"advantage": "batch"}),
        ({"images_per_prompt": 3}, {"advantage": "group"}),
        ({"images_per_prompt": 2}, {"advantage": "leave_one_out", "normalise_std": False}),
        ({"branches": 3, "branch_schedule": "last"}, {"advantage": "leave_one_out"}),
        ({"branches": 2, "branch_schedule": "mixed", "antithetic": True}, {"advantage": "group", "minibatches": 3}),
        ({"branches": 3, "images_per_prompt": 2, "branch_schedule": "uniform"}, {}),
    ],
)
def test_network_calls_are_counted_as_they_happen(tmp_path, rollout, algorithm):
    """K branches at the last noisy step cost H + (K - 1) calls a trajectory; others what follows from their branch step."""
    made = trainer(tmp_path, rollout=rollout, algorithm=algorithm)
    denoiser, rows = made.parts.policy.denoiser, []
    real = denoiser.denoise

    def counted(x, step, conditioning):
        if not torch.is_grad_enabled():
            rows.append(len(x))
        return real(x, step, conditioning)

    denoiser.denoise = counted
    found = made.round()
    assert sum(rows) == found["network_calls"]
    assert found["reward_queries"] == 6
    branches = rollout.get("branches", 1)
    if rollout.get("branch_schedule") == "last":
        assert sum(rows) == 6 // branches * (STEPS + branches - 1)
    elif branches == 1:
        assert sum(rows) == 6 * STEPS
    assert found["grad_norm"] > 0


def test_a_branch_is_charged_once_for_its_only_action(tmp_path, monkeypatch):
    run = trainer(
        tmp_path,
        rollout={"branches": 3},
        algorithm={"kl_form": "reward", "kl_coefficient": 1.0, "advantage": "group", "inner_epochs": 2},
        optimizer={"lr": 1e-2},
    )
    seen = []
    returns = run.learner.credit.returns

    def spy(totals, actions, potentials, charges):
        seen.append((totals, charges, returns(totals, actions, potentials, charges)))
        return seen[-1][-1]

    monkeypatch.setattr(run.learner.credit, "returns", spy)
    run.train()
    totals, charges, found = seen[-1]
    assert charges.shape == (2, 1, 3)
    assert charges.abs().max() > 0
    assert torch.equal(found, (totals - charges[:, 0]).unsqueeze(1))


def test_computing_time_is_the_clock_where_it_is_asked_for(tmp_path, monkeypatch):
    run = trainer(tmp_path, run={"rounds": 2, "clock": "cpu"})
    score = run.learner._score
    monkeypatch.setattr(run.learner, "_score", lambda *args: (time.sleep(0.5), score(*args))[1])
    rows = metrics_of(run.train())
    assert 0 < rows[-1]["seconds"] < 0.9  # asleep for a second in all


def test_computing_time_is_refused_where_it_cannot_be_seen(tmp_path, monkeypatch):
    world = module.World()
    world.from_main = lambda value: value
    world.size = 2
    monkeypatch.setattr(module.World, "join", lambda *args: world)
    with pytest.raises(ConfigError, match=r"run\.clock=cpu .* leave run\.clock at wall"):
        trainer(tmp_path, run={"clock": "cpu"})


DENSE = {"dense_every": 1, "dense_lambda": 0.9, "kl_coefficient": 0.1, "kl_form": "reward", "consistency_coefficient": 0.5}


@pytest.mark.parametrize(
    ("rollout", "algorithm", "queries"),
    [
        ({}, {"dense_every": 1}, 18),
        ({}, {"dense_every": 2, "sampler": {"final_std": 0.1}}, 18),
        ({"images_per_prompt": 2}, {**DENSE, "advantage": "group"}, 18),
        ({"images_per_prompt": 2}, {"loss": "rebel", "inner_epochs": 2, "minibatches": 1}, 6),
        ({"branches": 2}, {"loss": "rebel", "advantage": "group", "consistency_coefficient": 1.0}, 6),
        ({"branches": 3}, {"kl_form": "reward", "kl_coefficient": 1.0, "kl_target": 1e-9, "advantage": "group"}, 6),
        ({}, {"kl_coefficient": 0.1, "kl_target": 1.0, "optimizer": {"max_pace": 1.3, "schedule": "linear"}}, 6),
        ({}, {"loss": "reward_backprop", "backprop_calls": 2, "kl_coefficient": 0.1}, 6),
        ({}, {"loss": "reinforce", "consistency_coefficient": 1.0, "consistency_target": "next"}, 6),
        ({}, {"inner_epochs": 3, "stop_kl": 1e-12, "advantage": "batch"}, 6),
    ],
)
def test_every_algorithm_runs_and_resumes_bit_for_bit(tmp_path, rollout, algorithm, queries):
    changes = {
        "rollout": rollout,
        "sampler": algorithm.pop("sampler", {}),
        "optimizer": (optimizer := algorithm.pop("optimizer", {})),
        "algorithm": algorithm,
        "rewards": ["alignment"] if algorithm.get("loss") == "reward_backprop" else ["sharpness"],
        "run": {"rounds": 4},
    }
    straight = trainer(tmp_path / "a", functions=None, **changes).train()
    stopper = Listener(2, lambda: signal.raise_signal(signal.SIGINT))
    halted = trainer(tmp_path / "b", functions=None, watcher=stopper, **changes).train()
    assert resume(halted, functions=None).train() == halted
    finals = [(run / "final/pytorch_lora_weights.safetensors").read_bytes() for run in (straight, halted)]
    assert finals[0] == finals[1]
    rows = metrics_of(straight)
    assert [row["reward_queries"] for row in rows] == [queries * (i + 1) for i in range(4)]
    assert all(row["grad_norm"] > 0 for row in rows)
    if algorithm.get("stop_kl"):
        assert all(row["updates_left_out"] == 2 for row in rows)
    if algorithm.get("kl_coefficient"):
        assert rows[-1]["kl"] != 0
    if algorithm.get("kl_target") and not optimizer:
        assert rows[-1]["kl_coefficient"] > rows[0]["kl_coefficient"]
    if optimizer:  # far below its share of the target: the pace grows to its most
        assert [row["lr"] / rows[0]["lr"] for row in rows] == pytest.approx([1, 0.75 / 0.9, 0.5 / 0.81, 0.25 * 1.3])


def test_a_state_whose_prediction_could_not_be_scored_drops_its_trajectory(tmp_path):
    seen = []

    def picky(images, prompts):
        """Answer for images, and NaN for one of the predicted images, which come in a call of their own."""
        scores = images.mean((1, 2, 3))
        if len(images) == 12:
            scores[5] = float("nan")
        seen.append(len(images))
        return scores

    made = trainer(tmp_path, functions=[picky], algorithm={"dense_every": 1, "advantage": "batch"})
    made.parts.rewards.parts[0] = made.parts.rewards.parts[0]._replace(on_failure="skip")
    sizes = []
    real = made.learner.update.update
    made.learner.update.update = lambda experience, *rest: (sizes.append(len(experience)), real(experience, *rest))[1]
    made.round()
    assert seen == [6, 12]
    assert sizes == [10]  # five trajectories of two actions


def test_the_result_does_not_depend_on_batch_sizes(tmp_path):
    found = []
    for sizes in ({"sample": 6, "micro": 64}, {"sample": 4, "micro": 5}):
        made = trainer(
            tmp_path,
            rollout={"sample_batch_size": sizes["sample"]},
            run={"micro_batch_size": sizes["micro"]},
            optimizer={"eps": 1e-4},
        )
        found.append((made.round(), [p.detach().clone() for p in made.parts.policy.parameters]))
    assert found[0][0]["reward"] == pytest.approx(found[1][0]["reward"], abs=1e-6)
    assert found[0][0]["grad_norm"] == pytest.approx(found[1][0]["grad_norm"], rel=1e-4)
    assert max(largest_difference(a, b) for a, b in zip(found[0][1], found[1][1], strict=True)) < 1e-6


def test_rounds_differ_and_runs_repeat(tmp_path):
    rewards = []
    for seed in (0, 0, 1):
        made = trainer(tmp_path, seed=seed)
        rewards.append([made.round()["reward"] for _ in range(2)])
    assert rewards[0] == rewards[1]
    assert rewards[0][0] != rewards[0][1]
    assert rewards[0] != rewards[2]


def test_the_time_limit_ends_a_run_in_order(tmp_path):
    run = trainer(tmp_path, run={"rounds": 50, "time_limit_minutes": 1e-6}).train()
    assert len(metrics_of(run)) == 1
    assert (run / "final/pytorch_lora_weights.safetensors").exists()


def test_final_noise_is_for_training_only(tmp_path):
    made = trainer(tmp_path, sampler={"final_std": 0.1})
    assert len(made.parts.policy.table.noisy_steps()) == STEPS
    assert made.parts.evaluator.table.std[-1] == 0
    assert made.round()["network_calls"] == 6 * STEPS


def test_a_model_is_given_by_its_path(tmp_path):
    lcm_pipeline().save_pretrained(tmp_path / "model")
    made = Trainer(tiny_config(tmp_path), model=tmp_path / "model", rewards=[brightness], prompts=PROMPTS)
    assert made.config.model.path == str(tmp_path / "model")
    objects = trainer(tmp_path)
    assert made.round()["reward"] == pytest.approx(objects.round()["reward"], abs=1e-6)


class Scripted:
    """A reward whose mean over an evaluation follows a script, so that the guard's decisions can be foreseen."""

    def __init__(self, means):
        self.means = list(means)

    def __call__(self, images, prompts):
        spread = images.mean((1, 2, 3))
        if len(images) == 5:  # an evaluation; rounds have six images
            return spread - spread.mean() + self.means.pop(0)
        return spread


def test_the_best_weights_are_kept_and_patience_ends_the_run(tmp_path):
    listener = Listener()
    kept = {}
    script = Scripted([0.0, 1.0, 3.0, 2.0, 2.5, 9.0])
    made = trainer(
        tmp_path,
        functions=[script],
        watcher=listener,
        evaluation={"images": 5, "every": 1, "patience": 2, "final": "best"},
        run={"rounds": 9},
    )
    real = made._evaluate

    def evaluate(name):
        found = real(name)
        kept[made.round_number] = {key: value.detach().clone() for key, value in made.parts.policy.named_parameters.items()}
        return found

    made._evaluate = evaluate
    run = made.train()
    assert "stopped after round 4: 2 evaluations brought no better reward than 3 of round 2" in listener.notes
    rows = metrics_of(run)
    assert [row["eval/reward"] for row in rows] == pytest.approx([1.0, 3.0, 2.0, 2.5], abs=1e-6)
    assert script.means == [9.0]
    assert (run / "best" / WEIGHTS_NAME).read_bytes() == (run / "final" / WEIGHTS_NAME).read_bytes()
    assert json.loads((run / "eval.json").read_text())["final_round"] == 2
    assert read_run(run).outcome["reward"]["mean"] == pytest.approx(3.0, abs=1e-6)
    card = (run / "final/README.md").read_text()
    assert "Trained for 2 rounds (those with the best `reward`)" in card
    assert re.search(r"\| reward \| \S+ \| 3 \|", card)
    made.parts.policy.load(kept[2])
    save_lora(made.parts.policy, tmp_path / WEIGHTS_NAME)
    assert (tmp_path / WEIGHTS_NAME).read_bytes() == (run / "best" / WEIGHTS_NAME).read_bytes()


def test_a_figure_below_its_floor_ends_the_run(tmp_path):
    listener = Listener()
    made = trainer(
        tmp_path,
        functions=[Scripted([2.0, 1.9, 1.0])],
        watcher=listener,
        evaluation={"images": 5, "every": 1, "least": {"rewards.Scripted": 0.9}},
        run={"rounds": 9},
    )
    run = made.train()
    assert any("stopped after round 2: rewards.Scripted is 1, below 0.9 of its 2 before training" in n for n in listener.notes)
    assert len(metrics_of(run)) == 2
    assert (run / "final" / WEIGHTS_NAME).exists()


def test_held_out_rewards_are_looked_at_and_not_trained_on(tmp_path):
    made = trainer(tmp_path, evaluation={"every": 1, "held_out": ["sharpness", {"name": "colourfulness", "label": "colour"}]})
    run = made.train()
    for look in json.loads((run / "eval.json").read_text())["evaluations"]:
        assert set(look["held_out"]) == {"sharpness", "colour"}
        assert look["held_out"]["colour"]["mean"] > 0
    rows = metrics_of(run)
    assert set(rows[0]) >= {"eval/held_out.sharpness", "eval/guard.diversity", "eval/reward", "rewards/brightness"}
    assert "rewards/sharpness" not in rows[0]


def test_a_figure_that_is_not_there_is_refused_before_the_first_round(tmp_path):
    made = trainer(tmp_path, evaluation={"best": "judge.animal"})
    with pytest.raises(ConfigError, match=r"no metric 'judge\.animal'; this run has reward, rewards\.brightness"):
        made.train()
    assert made.round_number == 0
