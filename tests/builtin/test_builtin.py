"""The world: prompts that are true of their pictures, what is held out, captions that leave something out, drawing by seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcm.builtin.prompts import SETS, prompt_set
from rlcm.builtin.renderer import DEFAULT_FONT, HUES, Renderer, _ground, _tinted
from rlcm.builtin.scenes import SIDES, SIZE, Thing, arrange, caption, draw_asked
from rlcm.builtin.verdict import verdict
from rlcm.builtin.vocabulary import (
    ANIMALS,
    CLASSES,
    COLOURS,
    TAGS,
    UNSAID,
    Asked,
    colour_is_held_out,
    every,
    is_held_out,
    metadata,
    pair_is_held_out,
    prompt,
)
from rlcm.errors import MissingFileError
from rlcm.recipe.clip import seen

ALL = [asked for tag in TAGS for held_out in (False, True) for asked in every(tag, held_out)]


def _asked(text):
    return next(asked for asked in ALL if prompt(asked) == text)


@pytest.mark.parametrize(
    ("text", "include", "exclude"),
    [
        ("an owl", [{"class": "owl", "count": 1}], [("owl", 2)]),
        ("three foxes", [{"class": "fox", "count": 3}], [("fox", 4)]),
        ("a red car", [{"class": "car", "count": 1, "color": "red"}], [("car", 2)]),
        ("a dog and a boat", [{"class": "dog", "count": 1}, {"class": "boat", "count": 1}], [("dog", 2), ("boat", 2)]),
        (
            "a boat above a fox",
            [{"class": "fox", "count": 1}, {"class": "boat", "count": 1, "position": ["above", 0]}],
            [("fox", 2), ("boat", 2)],
        ),
        (
            "a green car and a yellow boat",
            [{"class": "car", "count": 1, "color": "green"}, {"class": "boat", "count": 1, "color": "yellow"}],
            [("car", 2), ("boat", 2)],
        ),
    ],
)
def test_a_prompt_has_metadata_as_geneval_has_them(text, include, exclude):
    found = metadata(_asked(text))
    assert found["include"] == include
    assert [(item["class"], item["count"]) for item in found["exclude"]] == exclude
    assert found["prompt"] == text
    assert found["tag"] in TAGS


@pytest.mark.parametrize(
    ("text", "unsaid", "left"),
    [
        ("three foxes", 1, "foxes"),
        ("a red car", 2, "a car"),
        ("a boat above a fox", 3, "a boat and a fox"),
        ("a green car and a yellow boat", 1, "a car and a yellow boat"),
        ("a green car and a yellow boat", 2, "a green car and a boat"),
        ("a green car and a yellow boat", 3, "a car and a boat"),
        ("a dog and a boat", 3, "a dog and a boat"),
    ],
)
def test_a_caption_leaves_out_number_relation_or_colour(text, unsaid, left):
    assert prompt(_asked(text), unsaid) == left


def test_prompts_differ_and_their_kinds_are_those_of_pretraining():
    assert len({prompt(asked) for asked in ALL}) == len(ALL)
    assert sum(TAGS.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="tag='three_object'"):
        every("three_object", False)


def test_a_tenth_of_pairs_numbers_and_colours_is_held_out():
    classes = range(len(CLASSES))
    pairs = [pair_is_held_out(a, b) for a in classes for b in classes if a < b]
    assert 0.05 <= np.mean(pairs) <= 0.15
    for tag in ("counting", "colors", "position", "two_object"):
        kept, out = every(tag, False), every(tag, True)
        assert 0.05 <= len(out) / (len(kept) + len(out)) <= 0.15, tag
    assert every("single_object", True) == ()
    # A pair is a pair in either order and whatever is said of it; a colour is held out wherever it is asked for.
    for asked in ALL:
        if len(asked.classes) == 2:
            turned = Asked(asked.tag, asked.classes[::-1], asked.colours[::-1], relation=asked.relation)
            assert is_held_out(asked) == is_held_out(turned)
        if any(k is not None and colour_is_held_out(c, k) for c, k in zip(asked.classes, asked.colours, strict=True)):
            assert is_held_out(asked)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([False, True, None]))
def test_the_verdict_on_a_scene_is_that_its_prompt_is_true(seed, held_out):
    rng = np.random.default_rng(seed)
    asked = draw_asked(rng, held_out)
    things = arrange(asked, rng, held_out)
    assert verdict(seen(things), metadata(asked))
    assert held_out is None or is_held_out(asked) == held_out
    low, high = SIDES[len(things)]
    for i, thing in enumerate(things):
        assert low <= thing.side <= high
        assert thing.side / 2 <= min(thing.x, thing.y)
        assert max(thing.x, thing.y) <= SIZE - thing.side / 2
        assert (thing.colour is None) == (thing.kind < len(ANIMALS))
        for other in things[:i]:
            assert max(abs(thing.x - other.x), abs(thing.y - other.y)) >= (thing.side + other.side) / 2


def test_what_is_held_out_is_in_no_picture_of_pretraining():
    rng = np.random.default_rng(4)
    for _ in range(500):
        things = arrange(draw_asked(rng, False), rng, False)
        kinds = sorted({thing.kind for thing in things})
        assert len(kinds) < 2 or not pair_is_held_out(*kinds)
        assert not any(thing.colour is not None and colour_is_held_out(thing.kind, thing.colour) for thing in things)


def test_the_kinds_and_the_silence_of_captions_have_their_shares():
    rng = np.random.default_rng(5)
    asked = [draw_asked(rng, False) for _ in range(4000)]
    counts = Counter(a.tag for a in asked)
    for tag, share in TAGS.items():
        assert counts[tag] / 4000 == pytest.approx(share, abs=0.03)
    silent = {tag: np.mean([caption(a, rng) != prompt(a) for a in asked if a.tag == tag]) for tag in TAGS}
    assert silent["single_object"] == silent["two_object"] == 0
    for tag in ("counting", "colors", "position", "color_attr"):
        assert silent[tag] == pytest.approx(UNSAID, abs=0.06), tag


def test_sets_of_prompts_are_apart_and_carry_their_metadata():
    sets = {name: prompt_set(name) for name in SETS}
    texts = {name: {entry["prompt"] for entry in entries} for name, entries in sets.items()}
    for name, entries in sets.items():
        assert len(texts[name]) == len(entries) == int(SETS[name].split()[0])
        kinds = {"world-objects": {"single_object"}, "world-held-out": set(TAGS) - {"single_object"}}.get(name, set(TAGS))
        assert {entry["tag"] for entry in entries} == kinds
    assert not texts["world"] & texts["world-unseen"]
    assert not (texts["world"] | texts["world-unseen"]) & texts["world-held-out"]
    assert all({"tag", "include", "exclude", "prompt"} == set(entry) for entries in sets.values() for entry in entries)
    assert sets["world-unseen"] == prompt_set("world-unseen")


def test_seeds_decide():
    first, again, other = ([draw_asked(np.random.default_rng(seed), False) for _ in range(5)] for seed in (1, 1, 2))
    assert first == again != other
    assert np.array_equal(_ground(np.random.default_rng(3)), _ground(np.random.default_rng(3)))


def test_grounds_are_pale():
    for seed in range(30):
        ground = _ground(np.random.default_rng(seed))
        assert ground.shape == (SIZE, SIZE, 3)
        assert ground.min() >= 150


def test_a_hue_is_given_to_what_is_coloured_and_to_nothing_else():
    from PIL import Image

    glyph = Image.new("RGBA", (2, 1), (200, 30, 30, 255))
    glyph.putpixel((1, 0), (120, 120, 120, 77))
    for hue in HUES.values():
        coloured, grey = np.asarray(_tinted(glyph, hue))[0].tolist()
        assert max(coloured[:3]) - min(coloured[:3]) > 100
        assert grey == [120, 120, 120, 77]
    assert list(HUES) == list(COLOURS)


def test_a_missing_font_of_the_world_is_told_with_the_remedy():
    with pytest.raises(MissingFileError, match="fonts-noto-color-emoji"):
        Renderer("/nowhere/font.ttf")


@pytest.mark.skipif(not DEFAULT_FONT.is_file(), reason="no emoji font")
def test_things_are_drawn_where_they_stand():
    renderer = Renderer()
    things = (Thing(CLASSES.index("heart"), 0, 16, 16, 24), Thing(CLASSES.index("frog"), None, 46, 44, 24))
    drawn, again, other = (renderer.draw(things, seed) for seed in (1, 1, 2))
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, other)
    changed = np.abs(drawn.astype(int) - renderer.draw((), 1)).sum(2) > 60
    rows, columns = np.nonzero(changed)
    assert changed[4:28, 4:28].mean() > 0.5
    assert changed[32:56, 34:58].mean() > 0.5
    assert not changed[4:28, 34:].any()
    assert rows.max() < 60
    assert columns.max() < 60
    red, green, blue = drawn[14, 16].tolist()
    assert red > 150
    assert max(green, blue) < 100
