"""The verdict on a picture, by hand: what GenEval's rules say of things found, and how far the graded form agrees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from world_pictures import at

from rlcm.builtin.detector import CELLS, NEAR, JudgeDetector, Maps, RewardDetector, read
from rlcm.builtin.graded import graded
from rlcm.builtin.judging import by_kind, right, sharpness
from rlcm.builtin.verdict import RELATIONS, fulfilled, related, verdict
from rlcm.builtin.vocabulary import CLASSES, COLOURS

ONE = {"include": [{"class": "fox", "count": 1}], "exclude": [{"class": "fox", "count": 2}]}
THREE = {"include": [{"class": "fox", "count": 3}], "exclude": [{"class": "fox", "count": 4}]}
RED = {"include": [{"class": "car", "count": 1, "color": "red"}]}
ABOVE = {"include": [{"class": "fox", "count": 1}, {"class": "boat", "count": 1, "position": ["above", 0]}]}
EACH = {"include": [{"class": "car", "count": 1, "color": "red"}, {"class": "boat", "count": 1, "color": "blue"}]}


@pytest.mark.parametrize(
    ("asked", "found", "answers"),
    [
        (ONE, [at("fox", 0.5, 0.5)], [True, True]),
        (ONE, [at("fox", 0.5, 0.5), at("cat", 0.2, 0.2)], [True, True]),  # others do no harm
        (ONE, [], [False, True]),
        (ONE, [at("cat", 0.5, 0.5)], [False, True]),
        (ONE, [at("fox", 0.2, 0.2), at("fox", 0.7, 0.7)], [True, False]),
        (THREE, [at("fox", 0.2, 0.2), at("fox", 0.7, 0.7)], [False, True]),
        (THREE, [at("fox", 0.2 * i, 0.2) for i in range(3)], [True, True]),
        (THREE, [at("fox", 0.2 * i, 0.2) for i in range(4)], [True, False]),
        (RED, [at("car", 0.5, 0.5, "red")], [True, True]),
        (RED, [at("car", 0.5, 0.5, "blue")], [True, False]),
        (RED, [at("boat", 0.5, 0.5, "red")], [False, False]),
        (RED, [at("car", 0.5, 0.5, "blue"), at("car", 0.2, 0.2, "red")], [True, True]),
        (ABOVE, [at("fox", 0.5, 0.7), at("boat", 0.5, 0.3)], [True, True, True]),
        (ABOVE, [at("fox", 0.5, 0.3), at("boat", 0.5, 0.7)], [True, True, False]),
        (ABOVE, [at("fox", 0.5, 0.55), at("boat", 0.5, 0.45)], [True, True, False]),  # not far enough
        (ABOVE, [at("fox", 0.2, 0.5), at("boat", 0.6, 0.3)], [True, True, False]),  # further across than along
        (ABOVE, [at("boat", 0.5, 0.3)], [False, True, False]),
        (ABOVE, [at("fox", 0.5, 0.1), at("fox", 0.5, 0.9), at("boat", 0.5, 0.5)], [True, True, True]),  # any fox will do
        ({"include": [{"class": "car", "color": None}]}, [at("car", 0.5, 0.5, "blue")], [True]),  # no colour is asked for
        (EACH, [at("car", 0.2, 0.5, "red"), at("boat", 0.8, 0.5, "blue")], [True] * 4),
        (EACH, [at("car", 0.2, 0.5, "blue"), at("boat", 0.8, 0.5, "red")], [True, False, True, False]),
        ({"include": []}, [], []),
    ],
)
def test_answers_by_hand(asked, found, answers):
    assert fulfilled(found, asked) == answers
    assert verdict(found, asked) == all(answers)


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats(0.1, 0.9)] * 4))
def test_at_most_one_relation_holds_and_its_opposite_of_the_things_exchanged(places):
    first, second = at("fox", *places[:2]), at("cat", *places[2:])
    holding = [relation for relation in RELATIONS if related(first, second, relation)]
    assert len(holding) <= 1
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert [opposite[r] for r in holding] == [r for r in RELATIONS if related(second, first, r)]


def maps(*things, height=9.0):
    """Return maps of one picture that show things (class, x, y, colour), and elsewhere nothing; their logits can be learnt."""
    output = torch.full((1, len(CLASSES) + len(COLOURS) + 3, CELLS, CELLS), -9.0)
    output[:, -3:] = 0.0
    for name, x, y, colour in things:
        output[0, CLASSES.index(name), int(y * CELLS), int(x * CELLS)] = height
        if colour is not None:
            output[0, len(CLASSES) + COLOURS.index(colour), int(y * CELLS), int(x * CELLS)] = 9.0
        output[0, -1, int(y * CELLS), int(x * CELLS)] = 4.0
    return output.requires_grad_()


PICTURES = {
    "one": [("fox", 0.5, 0.5, None)],
    "two": [("fox", 0.25, 0.5, None), ("fox", 0.75, 0.5, None)],
    "three": [("fox", 0.2, 0.2, None), ("fox", 0.7, 0.3, None), ("fox", 0.5, 0.8, None)],
    "red": [("car", 0.5, 0.5, "red")],
    "blue": [("car", 0.5, 0.5, "blue")],
    "above": [("fox", 0.5, 0.75, None), ("boat", 0.5, 0.25, "red")],
    "below": [("fox", 0.5, 0.25, None), ("boat", 0.5, 0.75, "red")],
    "each": [("car", 0.25, 0.5, "red"), ("boat", 0.75, 0.5, "blue")],
    "swapped": [("car", 0.25, 0.5, "blue"), ("boat", 0.75, 0.5, "red")],
}


@pytest.mark.parametrize(
    ("asked", "true", "false"),
    [(ONE, "one", "two"), (THREE, "three", "two"), (RED, "red", "blue"), (ABOVE, "above", "below"), (EACH, "each", "swapped")],
)
def test_the_graded_form_prefers_what_the_verdict_calls_right(asked, true, false):
    good, bad = maps(*PICTURES[true]), maps(*PICTURES[false])
    assert verdict(read(Maps(good))[0], asked)
    assert not verdict(read(Maps(bad))[0], asked)
    better, worse = graded(Maps(torch.cat((good, bad))), [asked, asked]).tolist()
    assert 0.93 <= better <= 1
    assert worse <= better - 0.15


@pytest.mark.parametrize("asked", [ONE, THREE, RED, ABOVE, EACH])
def test_the_graded_form_says_which_way_is_better(asked):
    """A step along its gradient makes it larger, from faint maps of a wrong picture."""
    output = maps(("fox", 0.5, 0.4, None), ("boat", 0.5, 0.6, "red"), ("car", 0.2, 0.2, "blue"), height=0.5)
    before = graded(Maps(output), [asked]).sum()
    before.backward()
    assert output.grad.isfinite().all()
    with torch.no_grad():
        after = graded(Maps(output + 0.05 * output.grad / output.grad.norm()), [asked]).sum()
    assert float(after) > float(before.detach())


@pytest.mark.parametrize("count", [7, 300, 1000])
def test_the_graded_form_of_more_than_a_picture_holds(count):
    """One fox has almost nothing of so many, and is surely not one too many of them."""
    many = {"include": [{"class": "car", "count": count, "color": "red"}], "exclude": []}
    few = {"include": [{"class": "car"}], "exclude": [{"class": "car", "count": count}]}
    score, least = graded(Maps(maps(*PICTURES["red"]).expand(2, -1, -1, -1)), [many, few]).tolist()
    assert score == pytest.approx(1 / count, abs=2e-3)
    assert least > 0.99


def test_a_position_pulls_the_things_apart():
    output = maps(("fox", 0.5, 0.45, None), ("boat", 0.5, 0.55, "red"))
    graded(Maps(output), [ABOVE]).sum().backward()
    down = output.grad[0, -2]
    assert float(down[int(0.45 * CELLS), 8]) > 0  # the fox is to go down, y grows downwards
    assert float(down[int(0.55 * CELLS), 8]) < 0  # and the boat up


def test_two_peaks_near_each_other_are_one_thing():
    step = (NEAR - 0.5) / CELLS
    output = maps(("fox", 0.5, 0.5, None))
    with torch.no_grad():
        output[0, CLASSES.index("cat"), 8, int((0.5 + step) * CELLS)] = 5.0
    assert [f.name for f in read(Maps(output))[0]] == ["fox"]
    assert read(Maps(maps()))[0] == []


@pytest.mark.parametrize("kind", [RewardDetector, JudgeDetector])
def test_an_untrained_detector_finds_nothing_and_carries_gradients(kind):
    torch.manual_seed(0)
    detector, images = kind(), torch.rand(3, 3, 64, 64, requires_grad=True)
    assert not right(detector, images.detach(), [ONE] * 3).any()
    graded(detector(images), [ONE, RED, ABOVE]).sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert sum(p.numel() for p in detector.parameters()) < 400_000


def test_figures_of_pictures():
    answers = torch.tensor([True, False, True, True])
    asked = [{"tag": tag} for tag in ("counting", "counting", "colors", "colors")]
    assert by_kind(answers, asked) == {"counting": 0.5, "colors": 1.0, "overall": 0.75}
    stripes = torch.zeros(2, 3, 4, 4)
    stripes[..., ::2] = 1
    assert sharpness(stripes) == pytest.approx(1.0)
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(JudgeDetector().features(images).norm(dim=1), torch.ones(3))
