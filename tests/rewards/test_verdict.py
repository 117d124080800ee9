"""Verdicts worked out by hand."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcm.errors import ConfigError
from rlcm.rewards.verified.asked import Asked, Wanted, asked_of
from rlcm.rewards.verified.verdict import Found, judge, relations, without_doubles


def box(x, y, width=10, height=10, score=0.9):
    return Found((x, y, x + width, y + height), score)


def verdict(entry, found, colours=()):
    """Return the verdict; `colours` names the objects of a box's left edge."""
    return judge(asked_of("a prompt", entry), found, lambda name, objects: [dict(colours)[one.box[0]] for one in objects])


TWO_CATS = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}


@pytest.mark.parametrize(("there", "share"), [(0, 0.0), (1, 1 / 3), (2, 1.0), (3, 2 / 3), (7, 2 / 3)])
def test_counting(there, share):
    said = verdict(TWO_CATS, {"cat": [box(20 * n, 0) for n in range(there)]})
    assert said.right == (there == 2)
    assert said.share == pytest.approx(share)


def test_without_an_upper_limit_more_is_right():
    entry = {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]}
    assert verdict(entry, {"cat": [box(0, 0), box(20, 0)], "dog": [box(40, 0)]}).right
    said = verdict(entry, {"cat": [box(0, 0)], "bird": [box(9, 9)]})
    assert (said.right, said.share, said.reasons) == (False, 0.5, ("0 of 1 dog",))


def test_colours_of_the_most_confident_objects_count():
    entry = {"include": [{"class": "cup", "count": 1, "color": "red"}]}
    cups = [box(0, 0, score=0.4), box(20, 0, score=0.8)]
    assert not verdict(entry, {"cup": cups}, {0: "red", 20: "blue"}).right
    assert verdict(entry, {"cup": cups}, {0: "blue", 20: "red"}).right
    both = {"include": [{"class": "cup", "count": 2, "color": "red"}]}
    said = verdict(both, {"cup": cups}, {0: "red", 20: "blue"})
    assert (said.right, said.share) == (False, 0.75)
    assert said.reasons == ("1 of 2 cup red (seen: blue, red)",)


def test_positions():
    entry = {"include": [{"class": "dog"}, {"class": "cat", "position": ["left of", 0]}]}
    assert verdict(entry, {"dog": [box(50, 0)], "cat": [box(0, 0)]}).right
    said = verdict(entry, {"dog": [box(0, 0)], "cat": [box(50, 0)]})
    assert (said.share, said.reasons) == (2 / 3, ("cat not left of dog",))
    assert verdict(entry, {"cat": [box(0, 0)]}).share == pytest.approx(1 / 3)
    two = {"include": [{"class": "dog"}, {"class": "cat", "count": 2, "position": ["left of", 0]}]}
    one_of_two = verdict(two, {"dog": [box(50, 0)], "cat": [box(0, 0), box(90, 0)]})
    assert (one_of_two.right, one_of_two.share) == (False, pytest.approx(3.5 / 4))


@pytest.mark.parametrize(
    ("x", "y", "sides"),
    [
        (30, 0, {"right of"}), (-30, 5, {"left of"}), (0, 30, {"below"}), (2, -30, {"above"}), (30, 30, {"right of", "below"}),
        (0, 0, set()), (2, 0, set()), (1, 1, set()), (4, 0, set()), (4.1, 0, {"right of"}),
    ],
)  # fmt: skip
def test_sides(x, y, sides):
    # The sizes are 10 and 10: offsets up to 2 vanish, of an offset of 4 half is left.
    assert relations(box(x, y), box(0, 0)) == sides


_place = st.integers(-60, 60)


@given(_place, _place, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_sides_are_each_others_opposites(x, y, width, height):
    one, two = box(x, y, width, height), box(0, 0)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {opposite[side] for side in relations(one, two)} == relations(two, one)


def test_doubles():
    objects = [box(0, 0, score=0.5), box(1, 0, score=0.9), box(30, 0, score=0.1)]
    assert without_doubles(objects, 0.5) == [objects[1], objects[2]]
    assert without_doubles(objects, 1.0) == [objects[1], objects[0], objects[2]]
    assert len(without_doubles([box(0, 0, 0, 0), box(0, 0, 0, 0)], 0.5)) == 2


LINES = {
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}]}': Asked((Wanted("bench", 1),)),
    '{"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "cow", "count": 1}]}': Asked(
        (Wanted("bench", 1), Wanted("cow", 1))
    ),
    '{"tag": "counting", "include": [{"class": "bench", "count": 3}], "exclude": [{"class": "bench", "count": 4}]}': Asked(
        (Wanted("bench", 3),), (("bench", 4),), counting=True
    ),
    '{"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "red"}]}': Asked((Wanted("bench", 1, "red"),)),
    '{"tag": "position", "include": [{"class": "tv remote", "count": 1}, {"class": "cow", "count": 1, "position": ["left of", 0]}]}': (
        Asked((Wanted("tv remote", 1), Wanted("cow", 1, None, "left of", 0)))
    ),
    '{"tag": "color_attr", "include": [{"class": "cup", "count": 1, "color": "red"}, {"class": "cow", "count": 1, "color": "tan"}]}': (
        Asked((Wanted("cup", 1, "red"), Wanted("cow", 1, "tan")))
    ),
}
"""Lines in the form of GenEval's public file, of each of its six kinds."""


@pytest.mark.parametrize("line", LINES)
def test_geneval_s_lines_are_read_as_they_are(line):
    assert asked_of("a photo", json.loads(line)) == LINES[line]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "include"),
        ({"include": []}, "include"),
        ({"include": [{"count": 2}]}, "class"),
        ({"include": [{"class": "cat", "count": "two"}]}, "count"),
        ({"include": [{"class": "cat", "count": 0}]}, "count"),
        ({"include": [{"class": "cat", "count": "2"}]}, "count"),
        ({"include": [{"class": "cat", "count": True}]}, "count"),
        ({"include": [{"class": "cat"}, {"class": "dog", "position": ["above", "0"]}]}, "position"),
        ({"include": [{"class": "cat"}, {"class": "dog", "position": ["above", False]}]}, "position"),
        ({"include": [{"class": "cat"}], "exclude": [{"class": "cat", "count": "3"}]}, "exclude"),
        ({"include": [{"class": "cat", "position": ["near", 0]}]}, "position"),
        ({"include": [{"class": "cat", "position": ["above", 0]}]}, "index below 0"),
        ({"include": [{"class": "cat"}], "exclude": [{"class": "cat", "count": None}]}, "exclude"),
        ({"include": "cat"}, "include"),
        (
            {"include": [{"class": "cat", "colour": "green"}]},
            "include.0: 'colour' is not among what an entry takes: class, count, color, position",
        ),
        ({"include": [{"class": "cat"}], "exclude": [{"class": "cat", "color": "red"}]}, "takes: class, count"),
        ({"include": [{"class": "cat", "cuont": 2}]}, "'cuont' is not among"),
    ],
)
def test_what_is_not_said_well(entry, said):
    with pytest.raises(ConfigError, match="a green cat") as error:
        asked_of("a green cat", entry)
    assert said in str(error.value)
