"""YAML as the project reads and writes it: no key twice, no guesses, and there and back."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcm.yaml_text import MOST, Written, meant, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("3.", 3.0),
        ("+7", 7),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0", 0),
        ("-.inf", -math.inf),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("null", None),
    ],
)
def test_scalars_that_are_no_text_know_both(text, value):
    found = read_yaml(text)
    assert isinstance(found, Written)
    assert str(found) == text
    assert repr(found) == text
    assert (meant(found), type(meant(found))) == (value, type(value))
    assert meant(read_yaml(f"'{text}'")) == text


@pytest.mark.parametrize(
    "text", ["0012", "007.5", "1:30", "1:30:00", "2026-11-28", "0o17", "1e", "e5", "=", "nan", "a b", "1.2.3", "_1", "1_"]
)
def test_what_others_guess_is_text(text):
    assert read_yaml(text) == text
    assert not isinstance(read_yaml(text), Written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice, in lines 1 and 3; keep one of them"),
        ("a:\n  b:\n    - c: 1\n      d: 2\n      c: 3", "the key 'c' stands twice, in lines 3 and 5"),
        ("a:\n- b: !!set {c, d}", r"line 2 holds a set \(!!set\), which has no order; write a list: \[a, b\]"),
        ("a: {b: 1, 'b': 2}", "the key 'b' stands twice, in line 1"),
        ("1: a\n'1': b", "the key '1' stands twice, in lines 1 and 2"),
        ("a: &a [*a]", "the value in line 1 holds itself"),
        ("a: &a\n  b: *a", "holds itself"),
        ("[" * 100_000, "nested too deep"),
        ("a: b: c", r"mapping values are not allowed here \(line 1, column 5: 'a: b: c'\)"),
        ("a: !!int x", "invalid literal"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: \x07", "unacceptable character"),
        ("a: '\nb: [1,\n", r"line \d"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


def test_aliases_are_measured_before_they_are_unfolded():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with pytest.raises(ValueError, match=f"more than {MOST:,} values"):
        read_yaml("\n".join(lines))
    assert len(read_yaml("\n".join(lines[:3]))["a2"]) == 10


def test_merge_keys_and_anchors():
    text = "one: &one {x: 1, y: 2}\ntwo:\n  three: &three\n    <<: *one\n    x: 3\nfour: {<<: [*three, *one], z: 4}"
    assert meant(read_yaml(text)) == {
        "one": {"x": 1, "y": 2},
        "two": {"three": {"x": 3, "y": 2}},
        "four": {"x": 3, "y": 2, "z": 4},
    }


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "no",
        "0012",
        "1e5",
        "1e-4",
        "null",
        "~",
        "",
        "1:30",
        "2026-11-28",
        "=",
        "<<",
        "a: b",
        "a #b",
        "[a]",
        "{a}",
        "'a",
        '"a"',
        "- a",
    ]
)
NESTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(TEXTS, NESTS, max_size=3), st.booleans())
def test_what_is_written_is_read_back_by_this_and_other_readers(value, flow):
    written = write_yaml(value, flow=flow)
    assert meant(read_yaml(written)) == value
    assert yaml.safe_load(written) == value
    assert not flow or "\n" not in written
