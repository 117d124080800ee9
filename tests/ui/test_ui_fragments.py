"""The parts of the page: texts escaped, words right, and something to read where there is nothing to show."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rlcm.report.metric import Metric
from rlcm.report.run import Run
from rlcm.studies.compare.methods import Curve, Method
from rlcm.ui import fragments, run_parts
from rlcm.ui.advice import advice_on
from rlcm.ui.desk import Desk, changed, run_menu
from rlcm.ui.folder import RunsFolder
from rlcm.ui.jobs import Job, Jobs
from rlcm.ui.playground import Drawn
from rlcm.ui.states import card, failed_card, result, sparkline, standing, state_of, stopped_card, time_left, waiting_card
from rlcm.ui.tab_compare import alike
from rlcm.ui.tab_samples import _step, at
from rlcm.ui.tiles import tiles

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

    assert "<u>" not in fragments.runs_list([failed_card("<u>", "<u>")], None, {})
    assert "<u>" not in "".join(run_parts.failed("<u>", "<u>", "<u>")) + "".join(run_parts.starting("<u>"))


def test_no_runs_yet():
    text, ways = run_parts.welcome()
    assert "Tune your first model" in text
    assert 'data-do="demo"' in ways
    assert 'data-do="mine"' in ways
    assert 'data-do="new"' in fragments.runs_list([], None, {})


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
    assert time_left(run) == f"1{NBSP}min{NBSP}30{NBSP}s left"
    assert standing(run) == f"Round 4 of 10, 1{NBSP}min{NBSP}30{NBSP}s left"
    assert card("x", run, Job("x", True)).rounds == standing(run)
    assert time_left(Run(None, rounds=[{"round": 4, "seconds": 60.0}])) == ""
    limited = Run(None, config={"run": {"rounds": 100_000, "time_limit_minutes": 4}}, rounds=[{"round": 4, "seconds": 60.0}])
    assert time_left(limited) == f"3{NBSP}min{NBSP}00{NBSP}s left"
    assert card("limited", limited, Job("limited", True)).progress == 0.25
    forged = Run(None, config={"run": {"rounds": -5, "time_limit_minutes": "soon"}}, rounds=[{"round": 4, "seconds": 60.0}])
    assert card("forged", forged, Job("forged", True)).progress == 0


def test_sparklines():
    assert sparkline([1.0]) == ""
    assert sparkline([0.0, 1.0, 0.5]) == "0.0,22.0 50.0,2.0 100.0,12.0"
    assert sparkline([2.0, 2.0]) == "0.0,22.0 100.0,22.0"
    assert len(sparkline([float(i) for i in range(1000)]).split()) <= 60


def measured(before, after, half=0.05, **guard):
    ends = [{"mean": mean, "ci95": half} for mean in (before, after)]
    looks = [{"round": i, "reward": end, "rewards": {"own": end}, "guard": {}} for i, end in enumerate(ends)]
    return Run(None, evaluations=[looks[0] | {"guard": {"diversity": 0.3}}, looks[1] | {"guard": guard}])


def test_a_change_is_said_where_it_is_larger_than_its_interval():
    assert result(measured(1.0, 1.2)) == f"reward 1.00 → 1.20 (+20{NBSP}%)"
    assert result(measured(1.0, 1.05)) == "reward 1.00 → 1.05 (no clear change)"
    assert result(Run(None, rounds=[{"round": 1, "reward": 0.5}])) == "reward 0.500"


@pytest.mark.parametrize(
    ("after", "diversity", "verdicts"),
    [
        (1.2, 0.3, ["ok", "ok"]),
        (1.05, 0.14, ["watch", "watch"]),
        (0.8, 0.05, ["bad", "bad"]),
    ],
)
def test_a_tile_has_the_verdict_of_the_rules(after, diversity, verdicts):
    run = measured(1.0, after, diversity=diversity)
    found = tiles(run, advice_on(run))
    assert [(tile.label, tile.verdict) for tile in found] == list(zip(("Reward", "Diversity"), verdicts, strict=True))
    assert bool(found[0].change) == (after != 1.05)


def test_what_can_be_done_with_a_run(run):
    done = run_parts.run_actions("first", run, IDLE)
    assert 'href="/files/first/report.html" target="_blank"' in done
    assert 'pytorch_lora_weights.safetensors" download' in done
    assert 'data-do="try"' in done
    assert 'data-do="stop"' in run_parts.run_actions("first", run, Job("first", True, False))
    gone = replace(run, final_round=1)
    job = Job("first", False, ended=(run.path / "metrics.jsonl").stat().st_mtime)
    assert 'data-do="resume"' in run_parts.run_actions("first", gone, job)
    assert 'data-do="retry"' in run_parts.run_actions("first", gone, job, "mend it")


def test_the_head_says_how_it_stands(run):
    html = run_parts.run_head("first", run, IDLE)
    assert 'href="?run=first"' in html
    assert "progressbar" not in html
    live = run_parts.run_head("first", run, Job("first", True, False))
    assert 'aria-valuenow="100"' in live
    assert "<em>Round 2 of 2</em>" in live
    assert "mend it" in run_parts.run_head("first", run, IDLE, "mend it")


def test_pictures_tiles_a_curve_and_details(run):
    stage = run_parts.run_stage(run)
    assert stage.count('data-act="') == 4
    assert stage.count("data:image/png") == 4 * (1 + 2 + 1)  # before, two rounds, and the small one to choose by
    assert 'max="1"' in stage
    assert "round 2</output>" in stage
    assert run_parts.run_tiles(run).count('class="tile ') >= 3
    assert run_parts.run_curve(run).count("<svg") == 2
    assert run_parts.run_curve(run).count("data-chart") == 2
    assert "Is the reward honest?" in run_parts.run_details("first", run)
    assert "No curve yet" in run_parts.run_curve(Run(run.path))
    assert run_parts.run_stage(Run(run.path)) == ""


def test_what_was_drawn_of_a_run_is_kept_until_it_changes(run, runs):
    desk, made = Desk(RunsFolder(runs), Jobs(runs)), []
    for one in (run, run, replace(run), run):
        desk.drawn("tiles", one, lambda one=one: str(made.append(one)))
    assert len(made) == 3


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
    assert alike({"a": measured(1.0, 1.2), "b": Run(None, evaluations=[{"rewards": {"x": {}}}]), "c": measured(1.0, 1.2)}) == [
        "a",
        "c",
    ]
    assert html.count("<svg") == 3


def method(name, *ends, half=0.05):
    return Method(name, [], [Curve([0, 1], [0, 1], [0, 1], [0.0, end], [half, half]) for end in ends], {})


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ([method("a", 0.5), method("b", 0.7)], "b is ahead of a: reward 0.700 against 0.500, by 0.200 ± 0.071."),
        (
            [method("a", 0.69), method("b", 0.7)],
            "Nobody is clearly ahead: b and a end with reward 0.700 against 0.690; they differ by 0.010 ± 0.071.",
        ),
        ([method("a", 0.5, 0.5), method("b", 0.7, 0.7)], "b is ahead of a: reward 0.700 against 0.500, by 0.200 ± 0.000."),
        ([method("a", 0.5)], ""),
    ],
)
def test_who_is_ahead(methods, said):
    assert "".join(fragments.ahead(methods, Metric())) == said
    less = [replace(one, curves=[replace(c, reward=[-v for v in c.reward]) for c in one.curves]) for one in methods]
    if len(less) > 1 and "is ahead" in said:
        assert "".join(fragments.ahead(less, KB)).startswith(f"a is ahead of b: JPEG size 0.500 against 0.700{NBSP}kB")


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


def test_one_that_was_stopped_before_its_first_round_is_no_failure():
    card_of = stopped_card("mine")
    assert (card_of.state, card_of.words, card_of.failure) == ("stopped", "stopped", "")
    head, actions = run_parts.unbegun("mine")
    assert "mine was stopped before its first round" in head
    assert "error" not in head
    assert 'data-do="retry"' in actions
    assert 'data-do="dismiss"' in actions


def test_a_sum_of_rewards_has_one_article():
    assert fragments.worth(Metric("the sum of rewards")) == "Below each its sum of rewards."
    assert fragments.worth(Metric("JPEG size", "kB", lower_is_better=True)) == "Below each its JPEG size (lower is better)."
