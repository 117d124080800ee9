"""What rewards may answer: every fault is named, and none passes for a score."""

import itertools
import logging
import math
from collections import deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcm.errors import RewardError
from rlcm.rewards import RewardMix, RewardPart


def red(images, prompts):
    return images[:, 0].mean((1, 2))


KINDS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "bfloat16": lambda v: torch.tensor(v, dtype=torch.bfloat16),
    "float16": lambda v: np.array(v, dtype=np.float16),
    "int": lambda v: torch.tensor(v).int(),
    "uint16": lambda v: np.array(v, dtype=np.uint16),
    "object array": lambda v: np.array([Decimal(x) for x in v], dtype=object),
    "with grad": lambda v: torch.tensor(v, requires_grad=True),
    "sparse": lambda v: torch.tensor(v).to_sparse(),
    "0-d tensors": lambda v: [torch.tensor(x) for x in v],
    "0-d arrays": lambda v: [np.float32(x) for x in v],
    "decimals": lambda v: [Decimal(x) for x in v],
    "fractions": lambda v: [Fraction(x) for x in v],
    "generator": lambda v: (x for x in v),
    "map": lambda v: map(float, v),
    "deque": deque,
    "view of another's memory": lambda v: np.array([v, v]).T[:, 0],
}


@pytest.mark.parametrize("convert", KINDS.values(), ids=KINDS)
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
        (["0.5"] * 5, "'0.5' is no number"),
        ("12345", "'12345' is no number"),
        (np.array(["1"] * 5), "an array of <U1"),
        ({1.0, 2.0, 3.0, 4.0, 5.0}, "a set has no order"),
        ([[1.0], [2.0, 3.0]], "which is no list"),
        ([10**400] * 5, "too large"),
        ({1: [0.0] * 5, "1": [0.0] * 5}, "components of one name"),
        ({"a": {"b": [0.0] * 5}}, "mine/a returned dict"),
        (torch.ones(5, device="meta"), "meta"),
        (itertools.repeat(1.0), r"shape \[6\]"),
        (object(), "object"),
        ({}, "empty dict"),
        ({" ": [1.0] * 5}, "returned a component without a name"),
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


def test_truth_values_are_numbers(images, prompts):
    for answer in ([True, False, True, False, True], torch.tensor([1, 0, 1, 0, 1]).bool()):
        assert RewardMix([("k", lambda images, prompts, answer=answer: answer)])(images, prompts).total.tolist() == [
            1,
            0,
            1,
            0,
            1,
        ]


def test_masked_numbers_are_no_scores(images, prompts):
    answer = np.ma.masked_array([1.0, 2.0, 3.0, 4.0, 5.0], mask=[0, 0, 0, 1, 0])
    with pytest.raises(RewardError, match="nan for image 3"):
        RewardMix([("k", lambda images, prompts: answer)])(images, prompts)


numbers = st.one_of(
    st.integers(-(10**6), 10**6),
    st.booleans(),
    st.floats(-1e6, 1e6),
    st.decimals(-1000, 1000, places=3),
    st.fractions(-1000, 1000, max_denominator=99),
    st.floats(-1e6, 1e6, width=32).map(np.float32),
    st.floats(-1e6, 1e6, width=32).map(torch.tensor),
)
anything = st.recursive(
    st.one_of(
        numbers,
        st.none(),
        st.text(max_size=6),
        st.binary(max_size=6),
        st.complex_numbers(),
        st.floats(),
        st.integers(10**300, 10**400),
        st.just(object()),
        st.just(torch.ones(5, device="meta")),
        st.just(np.array(["1"] * 5)),
        st.just(np.array(5, dtype="datetime64[D]")),
    ),
    lambda below: st.one_of(
        st.lists(below, max_size=6),
        st.lists(below, max_size=6).map(tuple),
        st.lists(below, max_size=6).map(iter),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 9)), below, max_size=3),
        st.just({1, 2, 3, 4, 5}),
    ),
    max_leaves=12,
)
PICTURES = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@settings(max_examples=50)
@given(st.lists(numbers, min_size=5, max_size=5), st.sampled_from([list, tuple, iter, lambda v: np.array(v, dtype=object)]))
def test_five_numbers_of_any_kind_are_five_scores(values, convert):
    found = RewardMix([("k", lambda images, prompts: convert(values))]).score(PICTURES, ["p"] * 5).parts["k"]
    np.testing.assert_allclose(found.numpy(), [float(value) for value in values], rtol=1e-6, atol=1e-6)


@settings(max_examples=50)
@given(anything)
def test_whatever_a_reward_returns_is_scores_or_an_error_with_its_name(answer):
    try:
        raw = RewardMix([("mine", lambda images, prompts: answer)]).score(PICTURES, ["p"] * 5)
    except RewardError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert "reward mine" in refused
        return
    assert raw.parts
    for values in raw.parts.values():
        assert values.shape == (5,)
        assert values.dtype == torch.float32
        assert values.isfinite().all()


def test_exceptions_are_kept(images, prompts):
    def broken(images, prompts):
        raise KeyError("lost")

    with pytest.raises(RewardError, match="reward broken raised KeyError: 'lost'") as caught:
        RewardMix([("broken", broken)])(images, prompts)
    assert isinstance(caught.value.__cause__, KeyError)


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


@pytest.mark.parametrize("value", [3e38, -2e15, 1e300])
def test_numbers_whose_squares_cannot_be_summed_are_refused(images, prompts, value):
    mix = RewardMix([("k", lambda images, prompts: [0.0, value, 1.0, 2.0, 3.0])])
    with pytest.raises(
        RewardError, match=r"for image 1 .*1 of 5 in all; every number must be finite, and no larger than 1e\+15"
    ):
        mix(images, prompts)


def test_large_numbers_are_scores(images, prompts):
    scores = RewardMix([("k", lambda images, prompts: [-1e15, 1e15, 0.0, 1e14, -1e14])])(images, prompts)
    assert scores.total.var().isfinite()
    assert scores.valid.all()


@pytest.mark.parametrize("second", [{"a": 0}, {"a": 0, "c": 0}, 0])
def test_components_are_the_same_at_every_call(images, prompts, second):
    answers = iter([{"a": 0, "b": 0}, {"b": 0, "a": 0}, second])

    def score(images, prompts):
        answer = next(answers)
        return {key: [0.0] * 5 for key in answer} if isinstance(answer, dict) else [0.0] * 5

    mix = RewardMix([("k", score)])
    assert list(mix(images, prompts).parts) == ["k/a", "k/b"]
    mix(images, prompts)
    with pytest.raises(
        RewardError, match=r"reward k returned .*, and a, b in an earlier call; return the same ones at every call"
    ):
        mix(images, prompts)
