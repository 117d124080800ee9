"""What rewards may answer: every fault is named, and none passes for a score."""

import logging
import math

import numpy as np
import pytest
import torch

from rlcm.errors import RewardError
from rlcm.rewards import RewardMix, RewardPart


def red(images, prompts):
    return images[:, 0].mean((1, 2))


@pytest.mark.parametrize(
    "convert", [list, np.array, lambda v: torch.tensor(v, dtype=torch.bfloat16), lambda v: [torch.tensor(x) for x in v]]
)
def test_kinds_of_answers(images, prompts, convert):
    scores = RewardMix([("k", lambda images, prompts: convert([1.0, 2.0, 3.0, 4.0, 5.0]))])(images, prompts)
    assert scores.total.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "returned None"),
        ([1.0] * 4, r"shape \[4\] for 5 images"),
        (torch.ones(5, 1), r"squeeze\(-1\)"),
        (1.0, r"shape \[\]"),
        (["a"] * 5, "list, which is no list"),
        (object(), "object"),
        ({}, "empty dict"),
        ({"a": [1.0] * 5, "b": [1.0]}, "mine/b"),
        (torch.ones(5, dtype=torch.complex64), "complex"),
        ([0.0, 1.0, float("nan"), 2.0, float("nan")], "nan for image 2 .prompt 'a red fox'., 2 of 5"),
        ([0.0, 1.0, 1.0, 2.0, -float("inf")], "-inf for image 4 .prompt 'a whale'., 1 of 5"),
    ],
)
def test_wrong_answers_are_errors_that_name_the_reward(images, prompts, answer, text):
    with pytest.raises(RewardError, match=text) as caught:
        RewardMix([("good", red), ("mine", lambda images, prompts: answer)])(images, prompts)
    assert "mine" in str(caught.value)


def test_exceptions_are_kept(images, prompts):
    def broken(images, prompts):
        raise KeyError("lost")

    with pytest.raises(RewardError, match="reward broken raised KeyError: 'lost'") as caught:
        RewardMix([("broken", broken)])(images, prompts)
    assert isinstance(caught.value.__cause__, KeyError)


def test_writing_into_the_images_is_noticed(images, prompts):
    def vandal(images, prompts):
        images.mul_(2)
        return [0.0] * 5

    with pytest.raises(RewardError, match=r"vandal wrote into the images"):
        RewardMix([("vandal", vandal)])(images, prompts)


def test_images_that_are_not_finite_are_not_the_rewards_fault(images, prompts):
    images[3, 1, 2, 2] = float("inf")
    with pytest.raises(RewardError, match=r"image 3 \(prompt 'two bees'\)"):
        RewardMix([("red", red)])(images, prompts)


@pytest.mark.parametrize("wrong", [(4, None), (5, [{}] * 4)])
def test_numbers_that_disagree(images, prompts, wrong):
    count, metadata = wrong
    with pytest.raises(ValueError, match="do not fit"):
        RewardMix([("red", red)])(images, prompts[:count], metadata)


def test_skip_drops_samples_and_never_scores_them_zero(images, prompts, caplog):
    def some(images, prompts):
        return [1.0, math.nan, 1.0, math.inf, 1.0]

    mix = RewardMix([RewardPart("red", red), RewardPart("some", some, 1.0, False, "skip")])
    with caplog.at_level(logging.WARNING):
        scores = mix(images, prompts)
    assert scores.valid.tolist() == [True, False, True, False, True]
    assert scores.total.isnan().tolist() == [False, True, False, True, False]
    torch.testing.assert_close(scores.total[scores.valid], red(images, prompts)[scores.valid] + 1)
    assert scores.parts["some"].isnan().tolist() == [False, True, False, True, False]
    assert "2 samples drop out" in caplog.text
    assert len(scores.failures) == 1


def test_skip_of_a_reward_that_raises_drops_the_batch(images, prompts):
    def broken(images, prompts):
        raise OSError("gone")

    mix = RewardMix([("broken", broken, 1.0, True, "skip"), ("red", red, 1.0, True)])
    scores = mix(images, prompts)
    assert not scores.valid.any()
    assert scores.total.isnan().all()
    assert mix.norms["red"].count == 0, "dropped samples do not enter the statistics"
