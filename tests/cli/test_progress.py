"""What a person sees: lines now and then where there is no terminal, and every note."""

import io

import pytest
from rich.console import Console

from rlcm.tuning.progress import ConsoleProgress


def metrics(number, progress=None):
    done = number / 3 if progress is None else progress
    return {"round": number, "progress": done, "reward": number / 2, "images_per_second": 12.3, "seconds": 4.0 * number}


def shown(every_seconds, terminal=False):
    out = io.StringIO()
    with ConsoleProgress(Console(file=out, force_terminal=terminal, width=120), every_seconds) as progress:
        progress.note("checked: [all] is well")
        for number in (1, 2, 3):
            progress.round(metrics(number), 3)
    return out.getvalue()


def test_the_first_and_the_last_round_are_always_shown():
    lines = shown(every_seconds=3600).splitlines()
    assert lines[0] == "checked: [all] is well"  # brackets are no markup
    assert [line.split()[1] for line in lines[1:]] == ["1/3", "3/3"]
    assert "reward 0.5 (began 0.5)  12.3 images/s  8 s left" in lines[1]
    assert "reward 1.5 (began 0.5)" in lines[2]


@pytest.mark.parametrize("first", [{}, {"reward": None}, {"reward": "0.5"}, {"reward": 0}])
def test_a_run_whose_first_round_lost_its_reward_is_taken_up(first):
    out = io.StringIO()
    with ConsoleProgress(Console(file=out, force_terminal=False, width=120), 0) as progress:
        progress.began(first, 1)
        progress.round(metrics(2), 3)
    assert ("reward 1 (began 0)" if first == {"reward": 0} else "reward 1 (began 1)") in out.getvalue()


def test_rounds_are_shown_as_often_as_wished():
    assert len(shown(every_seconds=0).splitlines()) == 4


def test_the_time_that_is_left_follows_the_clock_where_it_ends_the_run():
    out = io.StringIO()
    with ConsoleProgress(Console(file=out, force_terminal=False, width=120), every_seconds=3600) as progress:
        progress.round(metrics(1, progress=0.25), 100_000)
        progress.round(metrics(2, progress=0.5), 100_000)
        progress.round(metrics(4, progress=1.0), 100_000)
    first, last = out.getvalue().splitlines()
    assert first.endswith(" 12 s left")
    assert last.startswith("round 4/100000")
    assert last.endswith(" 0 s left")


def test_a_terminal_gets_a_bar():
    text = shown(every_seconds=0, terminal=True)
    assert "3/3" in text
    assert "checked: [all] is well" in text
    assert "round 1/3" not in text
