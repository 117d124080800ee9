"""What the page says of a run: every warning, and none for a healthy one."""

from pathlib import Path

import pytest

from rlcm.report.run import Run
from rlcm.ui.advice import advice_on

GUARD = {"diversity": 0.3, "saturated": 0.02, "near_black": 0.0, "near_white": 0.0, "high_frequency": 0.001}


def look(number, reward=1.0, judge=1.0, counting=1.0, held_out=1.0, **guard):
    value = {"mean": reward, "ci95": 0.05}
    return {
        "round": number,
        "reward": value,
        "rewards": {"own": value},
        "held_out": {"other": {"mean": held_out, "ci95": 0.05}},
        "judge": {"right": {"mean": judge, "ci95": 0.01}, "counting": {"mean": counting, "ci95": 0.01}},
        "guard": GUARD | guard,
    }


def run_of(*evaluations, rounds=(), **config):
    return Run(Path("run"), config=config, rounds=list(rounds), evaluations=list(evaluations))


def titles(run):
    return [one.title for one in advice_on(run)]


def test_a_healthy_run_gets_no_advice():
    rounds = [{"round": i, "kl": 0.01, "idle_groups": 0.1, "dropped_images": 0.0, "skipped_updates": 0.0} for i in range(1, 9)]
    run = run_of(look(0), look(5, reward=2.0), rounds=rounds, algorithm={"kl_target": 0.02})
    assert advice_on(run) == []
    assert advice_on(run_of()) == []
    assert advice_on(run_of(look(0))) == []


@pytest.mark.parametrize(
    ("changed", "title"),
    [
        ({"judge": 0.9}, "The judge sees less: right pictures"),
        ({"counting": 0.9}, "The judge sees less: right, of a number"),
        ({"diversity": 0.05}, "Pictures of one prompt look alike"),
        ({"diversity": 0.14}, "Pictures of one prompt grow alike"),
        ({"high_frequency": 0.0031}, "Fine noise is spreading over the pictures"),
        ({"high_frequency": 0.00009}, "The pictures are losing their detail"),
        ({"saturated": 0.2}, "Large areas are turning black or white"),
        ({"near_black": 0.06}, "Whole pictures are turning black"),
        ({"near_white": 0.5}, "Whole pictures are turning white"),
        ({"reward": 0.9}, "The reward is worse than before training"),
        ({"reward": 2.0, "held_out": 0.5}, "other falls while the reward rises"),
    ],
)
def test_what_evaluations_warn_of(changed, title):
    run = run_of(look(0), look(5, **changed))
    assert titles(run) == [title]
    assert advice_on(run)[0].kind == "warning"


@pytest.mark.parametrize(
    "changed", [{"judge": 0.985}, {"diversity": 0.16}, {"near_white": 0.04}, {"reward": 0.95}, {"held_out": 0.5}]
)
def test_what_chance_or_the_task_explains(changed):
    assert advice_on(run_of(look(0), look(5, **changed))) == []


@pytest.mark.parametrize(
    ("row", "title"),
    [
        ({"kl": 0.05}, "The model is straying from its base faster than its leash allows"),
        ({"idle_groups": 0.6}, "Much of the sampling teaches nothing"),
        ({"dropped_images": 2.0}, "Some pictures could not be scored"),
        ({"skipped_updates": 0.25}, "Updates are being left out"),
    ],
)
def test_what_the_latest_rounds_warn_of(row, title):
    healthy = [{"round": i} for i in range(1, 6)]
    bad = [{"round": 5 + i, **row} for i in range(1, 6)]
    assert titles(run_of(rounds=healthy + bad, algorithm={"kl_target": 0.02})) == [title]
    assert advice_on(run_of(rounds=bad + [{"round": 10 + i} for i in range(1, 6)], algorithm={"kl_target": 0.02})) == []


def test_numbers_are_in_the_text():
    text = advice_on(run_of(look(0), look(5, judge=0.9)))[0].text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith("90 % of the pictures, 100 % before training.")
    dropped = run_of(rounds=[{"round": 1, "dropped_images": 3.0}, {"round": 2, "dropped_images": 1.0}])
    assert "for 4 pictures of the last 2 rounds" in advice_on(dropped)[0].text


def test_why_a_run_ended_itself():
    settings = {"best": "reward", "patience": 2, "least": {"judge.right": 0.9}}
    tired = run_of(look(0), look(5, reward=2.0), look(10), look(15), evaluation=settings)
    assert titles(tired) == ["The training ended itself after round 15"]
    assert advice_on(tired)[0].kind == "note"
    assert advice_on(tired)[0].text.startswith("2 evaluations brought no better reward")
    hacked = run_of(look(0), look(5, reward=2.0, judge=0.5), evaluation=settings)
    assert titles(hacked) == ["The judge sees less: right pictures", "The training ended itself after round 5"]
    assert advice_on(run_of(look(0), look(5, reward=2.0), evaluation=settings)) == []


def test_damage_is_said_and_does_no_harm():
    run = run_of({"round": 0}, {"round": 5, "judge": "?", "guard": [1]}, evaluation={"patience": 1, "best": "x"})
    run.missing = ["2 lines of metrics.jsonl that cannot be read.", "The final LoRA: this page was written after round 5."]
    assert [one.text for one in advice_on(run)] == ["2 lines of metrics.jsonl that cannot be read."]
