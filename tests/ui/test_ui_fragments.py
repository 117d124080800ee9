"""The parts of the page: texts escaped, words right, and something to read where there is nothing to show."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rlcm.report.metric import Metric
from rlcm.report.run import Run
from rlcm.ui import fragments
from rlcm.ui.desk import changed, run_menu
from rlcm.ui.folder import RunsFolder
from rlcm.ui.jobs import Job
from rlcm.ui.playground import Drawn
from rlcm.ui.states import card, sparkline, state_of, time_left, waiting_card
from rlcm.ui.tab_samples import _step, at

IDLE = Job("first", False, False)
KB = Metric("JPEG size", "kB", True, "jpeg")
NBSP = "\N{NO-BREAK SPACE}"


@pytest.fixture(scope="module")
def run(runs):
    return RunsFolder(runs).read("first")


def drawn(strength, **rewards):
    about = {
        "prompt": "a <b>fox</b>",
        "seed": 3,
        "steps": 4,
        "guidance": 3.0,
        "model": "builtin",
        "run": "mine",
        "strength": strength,
    }
    verdicts = [("right", strength == 0), ("animal", strength == 0)]
    return Drawn(Image.fromarray(np.zeros((8, 8, 3), np.uint8)), about, rewards, verdicts)


def test_names_and_prompts_are_escaped(runs):
    html = fragments.runs_list([waiting_card("<script>x</script>")], None, {"<i>": "<u>"})
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;i&gt;" in html
    assert "<b>fox" not in fragments.pair([drawn(0.0), drawn(1.0)], KB, 0.2)
    assert "<u>" not in fragments.training_log("x", "ended", "<u>", ("error", "<u>", "<u>"))


def test_no_runs_yet():
    assert "No runs yet" in fragments.runs_list([], None, {})


def test_a_run_tells_its_state(run, tmp_path):
    assert state_of(run, IDLE) == "finished"
    assert state_of(run, Job("first", True, False)) == "training"
    assert state_of(run, Job("first", True, True)) == "stopping"
    assert state_of(Run(tmp_path), IDLE) == "stopped"
    longer = Job("first", False, ended=(run.path / "metrics.jsonl").stat().st_mtime)
    assert state_of(replace(run, final_round=1), longer) == "stopped", "made longer, and not at its new end"
    (tmp_path / "metrics.jsonl").write_text("")
    begun = Run(tmp_path, rounds=[{"round": 1, "seconds": 2.0}])
    written = (tmp_path / "metrics.jsonl").stat().st_mtime
    assert state_of(begun, IDLE) == "elsewhere"
    assert state_of(begun, Job("first", False, ended=written)) == "stopped"  # those rounds were this page's
    assert state_of(begun, Job("first", False, ended=written - 60)) == "elsewhere"
    os.utime(tmp_path / "metrics.jsonl", (written - 60, written - 60))
    assert state_of(begun, IDLE) == "stopped"


def test_a_card(run):
    found = card("first", run, IDLE)
    assert (found.rounds, found.progress, found.words) == ("2 of 2 rounds", 1.0, "finished")
    assert found.result.startswith("brightness ")
    assert found.curve.startswith("0.0,")


def test_time_left():
    run = Run(None, config={"run": {"rounds": 10}}, rounds=[{"round": 4, "seconds": 60.0}])
    assert time_left(run) == f"about 1{NBSP}min{NBSP}30{NBSP}s left"
    assert time_left(Run(None, rounds=[{"round": 4, "seconds": 60.0}])) == ""
    limited = Run(None, config={"run": {"rounds": 100_000, "time_limit_minutes": 4}}, rounds=[{"round": 4, "seconds": 60.0}])
    assert time_left(limited) == f"about 3{NBSP}min{NBSP}00{NBSP}s left"
    assert card("limited", limited, Job("limited", True)).progress == 0.25
    forged = Run(None, config={"run": {"rounds": -5, "time_limit_minutes": "soon"}}, rounds=[{"round": 4, "seconds": 60.0}])
    assert card("forged", forged, Job("forged", True)).progress == 0


def test_sparklines():
    assert sparkline([1.0]) == ""
    assert sparkline([0.0, 1.0, 0.5]) == "0.0,22.0 50.0,2.0 100.0,12.0"
    assert sparkline([2.0, 2.0]) == "0.0,22.0 100.0,22.0"
    assert len(sparkline([float(i) for i in range(1000)]).split()) <= 60


def test_the_head_links_what_there_is(run):
    html = fragments.run_head("first", run, IDLE)
    assert 'href="/files/first/report.html"' in html
    assert "pytorch_lora_weights.safetensors" in html
    assert "progressbar" not in html
    assert 'aria-valuenow="100"' in fragments.run_head("first", run, Job("first", True, False))
    assert "mend it" in fragments.run_head("first", run, IDLE, "mend it")


def test_curves_pictures_and_guards(run):
    assert fragments.run_curves(run).count("<svg") == 2
    assert fragments.run_pairs(run).count("data:image/png") == 8
    assert "Is the reward honest?" in fragments.run_guards(run)
    assert "No curve yet" in fragments.run_curves(Run(run.path))


def test_samples_through_the_rounds(run):
    assert [samples.round for samples in run.samples] == [0, 1, 2]
    assert _step(run.samples) == 1
    assert [at(run.samples, moment).round for moment in (0, 0.5, 1, 7, -1)] == [0, 0, 1, 2, 0]
    sheet = fragments.sample_sheet(run, run.samples[1])
    assert "Round 1 of 2" in sheet
    assert sheet.count("data-cell=") == 4
    film = fragments.sample_film(run, 1, 1)
    assert film.count("data:image/png") == 5  # two large, three in the strip
    assert "two blue dogs" in film
    assert str(run.samples[0].seeds[1]) in film
    assert film.count("frame here") == 1


def test_a_pair_shows_rewards_as_people_read_them():
    html = fragments.pair([drawn(0.0, jpeg=-2.0), drawn(1.5, jpeg=-1.5)], KB, 0.21).replace(NBSP, " ")
    assert "2.00 kB" in html
    assert "1.50 kB" in html
    assert "−25 %" in html
    assert "tuned, strength 1.5" in html
    assert "✓ right" in html
    assert "✗ wrong" in html
    assert "✗ animal not recognised" in html
    assert 'download="a-b-fox-b-seed3-steps4-mine-x1.5.png"' in html
    assert "drawn in 0.2 s" in html
    assert "The reward could not be had" not in html


def test_a_comparison(runs):
    html = fragments.comparison(RunsFolder(runs), ["first", "second"])
    assert "What each ended with" in html
    assert html.count("<svg") == 3


def test_what_was_sent_is_not_sent_again():
    first, seen = changed({}, {"a": "1", "b": "2"})
    assert first == ["1", "2"]
    second, seen = changed(seen, {"a": "1", "b": "3"})
    assert second[1] == "3"
    assert second[0] != "1"


def test_menus_keep_the_choice():
    assert run_menu(["a", "b"], "b")["value"] == "b"
    assert run_menu(["a", "b"], "gone")["value"] == "a"
    assert run_menu([], None)["value"] is None
