"""A run that was begun when all modules lay side by side (commit ea665cf): it is read, and goes on, as it would have then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import lcm_pipeline

from rlcm import Trainer, load_config
from rlcm.report import write_report
from rlcm.report.reading import read_run

BEFORE = Path(__file__).parents[1] / "data" / "run_before_the_wings"
TIMES = ("seconds", "time/", "images_per_second", "reward_wait_share")


@pytest.fixture
def run(tmp_path):
    shutil.copytree(BEFORE, tmp_path / "halted")
    return tmp_path / "halted"


def rounds(file):
    """Return the metrics of every round, without times."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in lines]


def test_its_configuration_is_read_as_it_was_written(run):
    config = load_config(run / "config.yaml")
    assert (config.rollout.branches, config.optimizer.max_pace, config.lora.rank) == (2, 4.0, 2)
    assert config.rewards[0].name == "rlcm.rewards.image:Brightness"


def test_it_goes_on_from_its_checkpoint_to_the_figures_of_that_time(run):
    assert Trainer.resume(run, model=lcm_pipeline()).train() == run
    expected, found = rounds(BEFORE / "uninterrupted.jsonl"), rounds(run / "metrics.jsonl")
    assert [line["round"] for line in found] == [1, 2, 3, 4]
    for then, now in zip(expected, found, strict=True):
        assert {key: now[key] for key in then} == pytest.approx(then, rel=1e-3, abs=1e-7)


def test_its_folder_is_reported_as_it_is(run):
    assert len(read_run(run).rounds) == 3
    page = write_report(run)
    assert "bright" in page.read_text()
