"""Rewards as Python passes them."""

import functools

import numpy as np
import pytest
import torch

from rlcm.errors import ConfigError
from rlcm.rewards import RewardSettings
from rlcm.rewards.given import given, mix_of


def dark(images, prompts):
    return -images.mean((1, 2, 3))


def alone(images):
    return images.mean((1, 2, 3))


class Scaled:
    timeout_seconds = 7.0

    def __call__(self, images, prompts):
        return 2 * images.mean((1, 2, 3))


def test_one_several_and_weights(images, prompts):
    means = images.mean((1, 2, 3))
    for passed, total in (
        (dark, -means),
        ([dark], -means),
        ((dark, alone), 0 * means),
        ({dark: 2, alone: 0.5}, -1.5 * means),
        (Scaled(), 2 * means),
        ([dark, dark], -2 * means),
    ):
        torch.testing.assert_close(mix_of(passed)(images, prompts).total, total)
    mixed = mix_of({dark: 1, "brightness": 0.5, "sharpness": 0})
    assert [(part.label, part.weight) for part in mixed.parts] == [("dark", 1), ("brightness", 0.5), ("sharpness", 0)]
    assert [one.settings.label for one in given([dark, dark, alone])] == ["dark", "dark-2", "alone"]
    assert given(functools.partial(dark, prompts=[]))[0].settings.label == "dark"
    assert mix_of(Scaled()).parts[0].timeout_seconds == 7


def test_entries_of_a_configuration_are_taken_too():
    entry = {"name": "brightness", "weight": -1.0, "args": {"target": 0.2}, "label": "b"}
    for passed in (entry, [entry], [RewardSettings(**entry)], RewardSettings(**entry)):
        (one,) = given(passed)
        assert one.reward is None
        assert (one.settings.label, one.settings.weight, one.settings.args) == ("b", -1.0, {"target": 0.2})


@pytest.mark.parametrize("weight", [torch.tensor(0.5), np.float32(0.5), np.array(0.5)])
def test_weights_may_be_numbers_of_other_libraries(weight):
    assert [one.settings.weight for one in given({dark: weight})] == [0.5]


def test_what_was_given_is_given_again_as_it_is():
    first = given({dark: 2, "brightness": 1})
    assert given(first) == first


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (3, "rewards=3 is no reward, but a int; give a function"),
        ([], r"rewards=\[\] holds no reward"),
        ({}, r"rewards=\{\} holds no reward"),
        ([dark, None], "rewards=None is no reward"),
        (Scaled, r"Scaled is a class; give an object of it, such as rewards=Scaled\(\)"),
        ({dark: "1"}, "the weight of dark is '1'; give a finite number"),
        ({dark: float("nan")}, "the weight of dark is nan"),
        ({"brightness": True}, "the weight of brightness is True"),
        (["brightness", "brightness"], "two rewards are labelled brightness"),
        ([{"name": "brightness", "wieght": 1}], "wieght"),
        (lambda prompts: [1.0], r"<lambda>\(prompts\) cannot be called with pictures and prompts"),
        (lambda prompts, images: [1.0], "cannot be called with pictures and prompts"),
        (lambda: [1.0], "cannot be called"),
        (lambda *, images, prompts: [1.0], "cannot be called"),
        (lambda a, b, c, d: [1.0], "cannot be called"),
    ],
)
def test_what_is_no_reward(passed, said):
    with pytest.raises(ConfigError, match=said):
        given(passed)


def test_pictures_alone_and_values_with_more_to_say(images, prompts):
    means = images.mean((1, 2, 3))

    def with_info(images, prompts, metadata):
        return means.numpy(), {"anything": [1, 2]}

    def pair(images, prompts):
        return {"a": means, "b": 2 * means}

    def keyword(images, *, prompts=None):
        return means

    for reward in (alone, lambda pictures: means, with_info, keyword, functools.partial(dark, prompts=[])):
        assert mix_of(reward)(images, prompts).total.abs().allclose(means)
    assert mix_of(pair)(images, prompts).total.allclose(3 * means)
    two = mix_of(lambda images, prompts: (0.5, 0.25))(images[:2], prompts[:2])  # two numbers are two pictures' values
    assert two.total.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("passed", [{dark: 0}, {dark: 0.0, alone: 0}, [{"name": "sharpness", "weight": 0}]])
def test_weights_that_are_all_0_teach_nothing(passed):
    with pytest.raises(ConfigError, match="all weights are 0, so there is nothing to learn"):
        mix_of(passed)
    assert len(mix_of({dark: 0, alone: 1}).parts) == 2
