"""What is kept of a run: its files, the best weights, and every whole round where something fails."""

import errno
import json
import os
import re

import pytest
from PIL import Image
from safetensors import safe_open
from short_runs import Failing, metrics_of, resume, trainer
from tiny_runs import PROMPTS, STEPS, Listener, brightness, lcm_pipeline, tiny_config

from rlcm.errors import ConfigError, RewardError, RunDirectoryError
from rlcm.policy.adapter import save_lora
from rlcm.report import read_run
from rlcm.rewards import RewardMix, RewardPart, RewardSettings, build_reward
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.training.config import load_config
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("_no_report")


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
        "depends_on.json",
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
    assert resume(run, force=True).train() == run  # with another reward
    assert [row["round"] for row in metrics_of(run)] == [1, 2]
    assert (run / "final/pytorch_lora_weights.safetensors").exists()


def test_a_reward_that_fails_in_an_evaluation_keeps_the_rounds(tmp_path):
    with pytest.raises(RewardError, match="a bug of the user's"):
        trainer(tmp_path, functions=[Failing(4, "raises")], run={"save_every": 0}).train()  # after the last round
    assert newest_checkpoint(tmp_path / "run")[0].round == 2


def test_a_folder_with_a_run_is_refused_before_anything_is_written(tmp_path):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        trainer(tmp_path).train()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_output_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output=.*file is no folder; choose another place"):
        trainer(tmp_path / "file")  # before anything expensive


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


@pytest.mark.parametrize(
    ("means", "least", "expected"), [([3.0, 2.0, 1.0], {}, 1), ([3.0, 2.0, 4.0], {}, 0), ([3.0, 4.0], {"reward": 2}, 1)]
)
def test_a_run_that_was_to_keep_its_best_and_had_none_says_so(tmp_path, means, least, expected):
    listener = Listener()
    keep = {"images": 5, "every": 1, "final": "best", "least": least}
    run = trainer(tmp_path, functions=[Scripted(means)], watcher=listener, evaluation=keep, run={"rounds": 2}).train()
    said = [note for note in listener.notes if note.startswith("evaluation.final=best has no effect")]
    missing = [text for text in read_run(run).missing if "evaluation.final=best had no effect" in text]
    assert (len(said), len(missing)) == (expected, expected)
    assert all(("within evaluation.least" in text) == bool(least) for text in said)


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
