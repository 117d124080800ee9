"""The list `rewards:` as users write it."""

import pytest
from pydantic import TypeAdapter, ValidationError

from rlcm.rewards.settings import RewardList, RewardSettings

LIST = TypeAdapter(RewardList)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("jpeg_compressibility", "jpeg_compressibility"),
        ("mine.scores:blueness", "blueness"),
        ("some/folder/mine.py:Outer.inner", "Outer.inner"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("https://${LOGIN}@host/score?key=${KEY}", "host"),
    ],
)
def test_label_is_derived(name, label):
    assert RewardSettings(name=name).label == label


def test_bare_string_is_short_for_a_name():
    short, long = LIST.validate_python(["sharpness", {"name": "sharpness", "weight": 2, "label": "crisp"}])
    assert short == RewardSettings(name="sharpness")
    assert (long.weight, long.label) == (2.0, "crisp")


def test_dump_and_load_agree():
    rewards = LIST.validate_python(["a:b", {"name": "http://h:1", "args": {"timeout": 3}, "on_failure": "skip"}])
    assert LIST.validate_python(LIST.dump_python(rewards)) == rewards


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "at least 1"),
        (["a:f", "b:f"], "labelled f"),
        ([{"name": "x", "wieght": 1}], "wieght"),
        ([{"name": "x", "weight": float("nan")}], "finite"),
        ([{"name": "x", "label": "a/b"}], "label"),
        (["mine:total"], "label"),
        ([{"name": "x", "on_failure": "ignore"}], "stop"),
        ([{"name": ""}], "at least 1"),
    ],
)
def test_mistakes_are_named(value, text):
    with pytest.raises(ValidationError, match=text):
        LIST.validate_python(value)
