"""Going on: bit for bit, for longer, with other weights as the result, and what is refused."""

import json
import signal

import pytest
import torch
import yaml
from short_runs import metrics_of, resume, trainer, without_times
from tiny_runs import PROMPTS, Listener, brightness, lcm_pipeline

from rlcm.errors import CheckpointError, ConfigError, MissingFileError, RunDirectoryError, WeightsError
from rlcm.report import read_run, write_report
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.runs.rundir import RunDirectory
from rlcm.runs.serialization import load_state
from rlcm.training.final import WEIGHTS_NAME, tuned_weights
from rlcm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("_no_report")


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
    with pytest.raises(
        ConfigError, match=r"because something has changed since round 1: lora\.rank: 4 -> 3\. What was measured"
    ):
        resume(run)
    with pytest.raises(CheckpointError, match="does not fit the run's configuration"):
        resume(run, force=True)
    (run / "config.yaml").write_text(text.replace("ema_decay: 0.0", "ema_decay: 0.5"))
    with pytest.raises(CheckpointError, match="does not fit the run's configuration"):
        resume(run, force=True)


def edited(state, *path, value):
    """Return a state with another value at a place, or without it where the value is None."""
    first, *rest = path
    changed = {key: item for key, item in state.items() if key != first or value is not None or rest}
    if rest:
        changed[first] = edited(state[first], *rest, value=value)
    elif value is not None:
        changed[first] = value
    return changed


def test_states_that_do_not_fit_are_refused(tmp_path):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    whole = load_state(run / "checkpoint-000001" / "state.safetensors")
    name = next(iter(whole["adapter"]))
    cases = [
        edited(whole, "adapter", value=None),
        edited(whole, "adapter", value=[1]),
        edited(whole, "adapter", name, value=None),
        edited(whole, "adapter", name, value=torch.ones(1)),  # would be stretched over the whole matrix
        edited(whole, "adapter", "more", value=torch.ones(1)),
        edited(whole, "adapter", name, value=whole["adapter"][name] * torch.nan),
        edited(whole, "optimizer", value={}),
        edited(whole, "optimizer", "state", 0, "exp_avg", value=torch.ones(3)),
        edited(whole, "counters", value=[]),
        edited(whole, "counters", "seconds", value="long"),
        edited(whole, "evaluations", value=[3]),
        edited(whole, "evaluations", value=[{"round": "first"}]),
        edited(whole, "watch", value=7),
        edited(whole, "statistics", "buffers", value={"a": ["much"]}),
        edited(whole, "kl_coefficient", value="much"),
        edited(whole, "kl_coefficient", value=float("nan")),
        edited(whole, "kl_coefficient", value=-1.0),
        edited(whole, "pace", value=0.0),
        edited(whole, "pace", value=float("inf")),
        edited(whole, "rewards", value=None),
        edited(whole, "batch_sizes", value=[]),
    ]
    fresh = trainer(tmp_path)
    for state in cases:
        with pytest.raises((CheckpointError, WeightsError), match=r"does not fit the run's configuration|holds NaN"):
            fresh._load_state(state)
    fresh._load_state(whole)


def test_a_damaged_result_is_written_anew(tmp_path):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    file = run / "final" / WEIGHTS_NAME
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    resume(run).train()
    assert file.read_bytes() == whole


def test_damaged_best_weights_are_no_result(tmp_path):
    run = trainer(tmp_path, run={"rounds": 2}, evaluation={"every": 1}).train()
    last = (run / "final" / WEIGHTS_NAME).read_bytes()
    (run / "best").mkdir(exist_ok=True)
    (run / "best" / WEIGHTS_NAME).write_bytes(b"")
    with pytest.raises(WeightsError, match=r"is empty.*evaluation\.final=last"):
        resume(run, changes=["evaluation.final=best"]).train()
    assert (run / "final" / WEIGHTS_NAME).read_bytes() == last
    resume(run, changes=["evaluation.final=last"]).train()
    assert (run / "final" / WEIGHTS_NAME).read_bytes() == last


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
    with pytest.raises(MissingFileError, match="holds no run"):
        Trainer.resume(tmp_path)


def test_fewer_rounds_than_were_done_end_the_run_as_it_is(tmp_path):
    listener = Listener()
    run = trainer(tmp_path, run={"rounds": 2, "save_every": 1}).train()
    again = resume(run, changes=["run.rounds=1"], watcher=listener)
    again.train()
    assert "2 rounds are done, and run.rounds=1 asks for no more: the run ends as it is after round 2" in listener.notes
    assert not any("of 1" in text for text in [*listener.notes, *read_run(run).missing])
    assert again.round_number == 2
    assert any("after round 2 of 3" in text for text in _notes_of(run, "run.rounds=3"))


def test_a_run_that_is_over_says_what_holds_it(tmp_path):
    timed = trainer(tmp_path / "timed", run={"rounds": 9, "time_limit_minutes": 1e-6}).train()
    said = _notes_of(timed, "run.rounds=20")
    assert (
        "run.time_limit_minutes=1e-06 is used up; with a larger one, or null, it would go on: the run ends as it is after "
        in said[-1]
    )
    assert _notes_of(timed, "run.time_limit_minutes=null")[-1] == "going on after round 1 of 20"
    worse = {"images": 5, "every": 1, "patience": 1, "best": "-reward"}
    impatient = trainer(tmp_path / "impatient", evaluation=worse, optimizer={"lr": 1e-30}, run={"rounds": 9}).train()
    said = _notes_of(impatient, "run.rounds=20")
    assert said[-1].startswith("1 evaluation brought no better -reward than"), said
    assert "with a larger evaluation.patience, or null, it would go on: the run ends as it is after round 1" in said[-1]
    assert _notes_of(impatient, "evaluation.patience=2")[-1] == "going on after round 1 of 20"
    whole = trainer(tmp_path / "whole", evaluation=worse, optimizer={"lr": 1e-30}, run={"rounds": 1}).train()
    assert "would go on" not in _notes_of(whole)[-1], "its rounds are over, too"


def _notes_of(run, *changes):
    listener = Listener()
    resume(run, changes=changes, watcher=listener)
    return listener.notes


def test_what_a_run_under_way_has_not_written_yet_is_waited_for(tmp_path):
    said = []

    def look():
        with pytest.raises(MissingFileError) as refused:
            tuned_weights(tmp_path / "tiny")
        said.append(str(refused.value))

    trainer(tmp_path, watcher=Listener(1, look), name="tiny").train()
    assert "is being trained by another process. Wait until it has ended" in said[0]
    assert "--resume" not in said[0]
    assert tuned_weights(tmp_path / "tiny").is_file()
