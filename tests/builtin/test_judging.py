"""The held-out judge of prompts: whom it answers, by kind, and what it says of prompts that it cannot know."""

from __future__ import annotations

import pytest
import torch
from world_pictures import FOX, FOXES, NOTHING, RED_CAR, STAR_AND_OWL, Seeing, pictures

from rlcm.builtin.detector import JudgeDetector
from rlcm.builtin.judging import PromptJudge, ground_spread
from rlcm.builtin.vocabulary import ANIMALS, COLOURS, TAGS, every, known, metadata, prompt

NAN = float("nan")
TWO_FOXES = {"include": [{"class": "fox", "count": 2}], "exclude": [{"class": "fox", "count": 3}]}


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(JudgeDetector, "load", lambda file: Seeing())
    return PromptJudge()


def told(answers):
    """Return the answers as lists, None where nothing was asked."""
    return {question: [None if v != v else v for v in values.tolist()] for question, values in answers.items()}


def test_right_is_asked_of_all_and_each_kind_of_its_own(judge):
    prompts = ["a fox", "two foxes", "a red car", "a star left of an owl", "a fox"]
    found = judge(pictures(FOX, FOX, RED_CAR, STAR_AND_OWL, FOXES), prompts, [{}] * 5)
    assert list(found) == ["right", "single_object", "counting", "colors", "position"]
    assert told(found) == {
        "right": [1, 0, 1, 1, 0],
        "single_object": [1, None, None, None, 0],
        "counting": [None, 0, None, None, None],
        "colors": [None, None, 1, None, None],
        "position": [None, None, None, 1, None],
    }
    assert all(values.dtype == torch.float32 and values.shape == (5,) for values in found.values())


def test_what_is_not_known_is_not_answered(judge):
    images = pictures(FOX, FOX, NOTHING, FOXES)
    prompts = ["a camel at dawn", "a fox", "a fox", "two foxes"]
    assert told(judge(images, prompts)) == {
        "right": [None, 1, 0, 1],
        "single_object": [None, 1, 0, None],
        "counting": [None, None, None, 1],
    }
    assert judge(images, ["a camel"] * 4) == {}
    assert judge(images, prompts, [{"include": [{"class": "bench", "count": 1}]}] * 4) == {}


def test_of_one_kind_alone_right_says_it_all(judge):
    found = judge(pictures(FOX, NOTHING, FOXES), ["a fox", "an owl", "a picture of a fox"])
    assert told(found) == {"right": [1, 0, 0]}


def test_metadata_go_before_words(judge):
    images, prompts = pictures(FOXES, FOX, FOX), ["many friends", "a fox", "a fox"]
    beside = [TWO_FOXES, TWO_FOXES | {"tag": "counting"}, {"legs": 4}]
    assert told(judge(images, prompts, beside)) == {
        "right": [1, 0, 1],
        "counting": [None, 0, None],
        "single_object": [None, None, 1],
    }


@pytest.mark.parametrize(("size", "dtype"), [(16, torch.float32), (128, torch.float16), (100, torch.bfloat16)])
def test_pictures_of_any_size_and_precision_are_judged(judge, size, dtype):
    images = pictures(FOX, FOXES, RED_CAR, size=size, dtype=dtype)
    assert told(judge(images, ["a fox", "a fox", "a red car"]))["right"] == [1, 0, 1]


def test_pictures_and_prompts_must_be_as_many(judge):
    with pytest.raises(ValueError, match="zip"):
        judge(pictures(FOX, FOX), ["a fox", "a fox"], [{}])


# What is known of a prompt


def test_every_prompt_of_the_world_is_known_by_its_words():
    for asked in (one for tag in TAGS for held_out in (False, True) for one in every(tag, held_out)):
        assert known(prompt(asked), {}) == metadata(asked)


def test_a_prompt_is_known_however_it_is_typed():
    expected = known("three foxes", {})
    assert expected["include"] == [{"class": "fox", "count": 3}]
    for text in ("a picture of three foxes", " Three foxes\n", "A PICTURE OF THREE FOXES"):
        assert known(text, {}) == known(text, {"note": "mine"}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a camel",
        "five foxes",
        "foxes",
        "fox",
        "a blue fox",
        "a pink car",
        "a fox on a cat",
        "a fox and a fox",
        "a fox, a car",
    ],
)
def test_what_is_nothing_of_this_world(text):
    assert known(text, {}) is None


@pytest.mark.parametrize(
    ("include", "exclude", "is_known"),
    [
        ([{"class": "fox", "count": 2}], [], True),
        ([{"class": "fox"}, {"class": "boat", "count": 1, "color": "red", "position": ["above", 0]}], [], True),
        ([{"class": "fox", "color": None}], [], True),
        ([{"class": "bench", "count": 1}], [], False),
        ([{"class": "fox"}, {"class": "bench"}], [], False),
        ([{"class": "fox"}], [{"class": "bench", "count": 1}], False),
        ([{"class": "car", "color": "pink"}], [], False),
        (None, [], False),
        ("a fox", [], False),
        (["fox"], [], False),
        ([], [], False),
        ([{"count": 2}], [], False),
        ([{"class": ["fox"]}], [], False),
        ([{"class": "fox", "count": "2"}], [], False),
        ([{"class": "fox", "count": True}], [], False),
        ([{"class": "fox", "count": 0}], [], False),
        ([{"class": "fox"}, {"class": "boat", "position": ["beside", 0]}], [], False),
        ([{"class": "fox"}, {"class": "boat", "position": [["above"], 0]}], [], False),
        ([{"class": "fox"}, {"class": "boat", "position": ["above", 1]}], [], False),
        ([{"class": "fox"}, {"class": "boat", "position": "above"}], [], False),
        ([{"class": "fox"}], {"class": "fox"}, False),
        ([{"class": "fox"}], None, False),
    ],
)
def test_metadata_are_believed_if_the_world_has_what_they_name(include, exclude, is_known):
    said = {"include": include, "exclude": exclude}
    assert known("a camel", said) is (said if is_known else None)


def test_the_animals_and_colours_of_the_world_are_words_of_their_own():
    assert len(set(ANIMALS)) == 12
    assert len(set(COLOURS)) == 5
    assert not {f"a {colour}" for colour in COLOURS} & {f"a {animal}" for animal in ANIMALS}


def test_the_grounds_spread_is_that_of_edges_and_sees_no_things():
    grounds = torch.tensor([[0.9, 0.8, 1.0], [0.7, 0.8, 1.0]])
    images = grounds[:, :, None, None].expand(2, 3, 16, 16).clone()
    assert ground_spread(images) == pytest.approx(0.1)
    images[:, :, 2:14, 2:14] = torch.rand(2, 3, 12, 12)  # things in the middle
    images[0, :, :2, :5] = 0.0  # and one that reaches the edge
    assert ground_spread(images) == pytest.approx(0.1)
    assert ground_spread(images[:1].expand(3, -1, -1, -1)) == 0
