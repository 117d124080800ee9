"""The mix: sums, normalisation, looks, gradients, and states that are resumed."""

import json
import math

import numpy as np
import pytest
import torch

from rlcm.errors import CheckpointError, ConfigError, RewardError
from rlcm.rewards import RawScores, RewardMix, Scores


def red(images, prompts):
    return images[:, 0].mean((1, 2))


def length(images, prompts):
    return [len(prompt) for prompt in prompts]


def both(images, prompts):
    return {"red": images[:, 0].mean((1, 2)), "length": np.array([len(p) for p in prompts], dtype=np.float16)}


red.differentiable = True


def test_total_is_the_weighted_sum(images, prompts):
    scores = RewardMix([("red", red, 2.0, False), ("length", length, -0.5, False)])(images, prompts)
    n = torch.tensor([5.0, 5, 9, 8, 7])
    torch.testing.assert_close(scores.total, 2 * images[:, 0].mean((1, 2)) - 0.5 * n)
    torch.testing.assert_close(scores.parts["length"], n)
    assert scores.total.dtype == torch.float32
    assert scores.valid.all()
    assert scores.failures == []


def test_components_are_parts_of_their_own(images, prompts):
    scores = RewardMix([("mine", both, 3.0)])(images, prompts)
    assert list(scores.parts) == ["mine/red", "mine/length"]
    torch.testing.assert_close(scores.total, 3 * (scores.parts["mine/red"] + scores.parts["mine/length"]))


def test_batches_join_into_a_round(images, prompts):
    answers = iter([[1.0] * 5, None])

    def flaky(images, prompts):
        return next(answers)

    mix = RewardMix([("red", red), ("flaky", flaky, 1.0, False, "skip")])
    raw = RawScores.cat([mix.score(images, prompts), mix.score(images[:5], prompts)])
    scores = mix.mix(raw)
    assert scores.valid.tolist() == [True] * 5 + [False] * 5
    assert scores.parts["flaky"].shape == scores.parts["red"].shape == (10,)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.0, 1, 1], [1.0, 0, 0], True),
        ([1.0, 1, 1], [1.0, 1, 1], True),
        ([0.0, 1, 0.5], [1.0, 0, 0], False),
        ([0.0, 1, 1], [2.0, 0, 0], False),
        ([0.0, 1, float("nan")], [1.0, 0, 0], True),  # the third is not learnt from
    ],
)
def test_rewards_that_are_only_right_or_wrong(first, second, expected):
    parts = {"a": torch.tensor(first), "b": torch.tensor(second)}
    valid = ~torch.isnan(parts["a"])
    assert Scores(parts["a"] + 3 * parts["b"], parts, valid, []).is_right_or_wrong is expected


def test_components_that_come_and_go_are_noticed():
    one = RawScores({"m/a": torch.ones(2)}, torch.ones(2, dtype=torch.bool))
    two = RawScores({"m/b": torch.ones(2)}, torch.ones(2, dtype=torch.bool))
    with pytest.raises(RewardError, match=r"m/[ab] is in some batches"):
        RawScores.cat([one, two])


def test_scale_and_shift_of_a_normalised_reward_do_not_matter(images, prompts):
    def scaled(images, prompts):
        return 1e4 * red(images, prompts) - 500

    plain = RewardMix([("r", red, 1.0, True), ("l", length)])(images, prompts)
    large = RewardMix([("r", scaled, 1.0, True), ("l", length)])(images, prompts)
    torch.testing.assert_close(plain.total, large.total, rtol=1e-3, atol=1e-3)
    assert large.parts["r"].abs().max() > 100, "raw values are reported as they are"


def test_resume_is_exact(images, prompts):
    def mix():
        return RewardMix([("r", red, 0.3, True), ("b", both, 1.0, True)])

    def batch(k):
        return torch.rand(5, 3, 12, 10, generator=torch.Generator().manual_seed(k))

    through = mix()
    expected = [through(batch(k), prompts).total for k in range(4)]
    first = mix()
    for k in range(2):
        first(batch(k), prompts)
    second = mix()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for k in range(2, 4):
        assert torch.equal(second(batch(k), prompts).total, expected[k])


def test_looking_does_not_update(images, prompts):
    mix = RewardMix([("r", red, 1.0, True)])
    mix(images, prompts)
    before = mix.state_dict()
    mix.mix(mix.score(images * 0.1, prompts), update=False)
    assert mix.state_dict() == before


def test_before_there_are_statistics_samples_are_normalised_by_their_own(images, prompts):
    mix = RewardMix([("r", red, 2.0, True)])
    values = red(images, prompts)
    expected = 2 * (values - values.mean()) / values.std(unbiased=False)
    torch.testing.assert_close(mix.mix(mix.score(images, prompts), update=False).total, expected, rtol=1e-4, atol=1e-4)
    found = mix.differentiable(images.clone().requires_grad_(), prompts, update=False)
    torch.testing.assert_close(found.total.detach(), expected, rtol=1e-4, atol=1e-4)
    assert not mix.norms


def test_looks_are_on_the_scale_of_the_first(images, prompts):
    # Gains are counted in standard deviations of the first look, whatever was learnt in between.
    mix = RewardMix([("r", red, 2.0, True), ("l", length)])
    n = torch.tensor([5.0, 5, 9, 8, 7])
    first = mix.look(mix.score(images, prompts))
    values = red(images, prompts)
    spread = values.std(unbiased=False)
    torch.testing.assert_close(first.total, 2 * (values - values.mean()) / spread + n, rtol=1e-4, atol=1e-4)
    assert not mix.norms, "the training's statistics are left alone"
    mix(images * 0.01, prompts)
    later = mix.look(mix.score(images + 1, prompts))
    torch.testing.assert_close(later.total, first.total + 2 / spread, rtol=1e-4, atol=1e-4)
    resumed = RewardMix([("r", red, 2.0, True), ("l", length)])
    resumed.load_state_dict(json.loads(json.dumps(mix.state_dict())))
    assert torch.equal(resumed.look(mix.score(images + 1, prompts)).total, later.total)


def test_looks_skip_what_was_dropped(images, prompts):
    answers = iter([[math.nan, 1.0, 2.0, 3.0, math.nan], [math.nan] * 5, [2.0] * 5])
    mix = RewardMix([("some", lambda images, prompts: next(answers), 1.0, True, "skip")])
    first, nothing, later = (mix.look(mix.score(images, prompts)).total for _ in range(3))
    assert first.isnan().tolist() == [True, False, False, False, True]
    torch.testing.assert_close(first[1:4], torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5)
    assert nothing.isnan().all()
    torch.testing.assert_close(later, torch.zeros(5))


@pytest.mark.parametrize("kind", ["training", "looks"])
@pytest.mark.parametrize("state", [{"other": {"count": 1, "mean": 0, "variance": 1}}, {"r": {"count": 1}}])
def test_the_state_of_other_rewards_is_refused(state, kind):
    with pytest.raises(CheckpointError, match="resume with the rewards"):
        RewardMix([("r", red, 1.0, True), ("other", red)]).load_state_dict({"training": {}, "looks": {}, kind: state})


def test_gradient_is_that_of_the_weighted_normalised_sum(images, prompts):
    mix = RewardMix([("r", red, 3.0, True)])
    mix(images, prompts)
    x = images.clone().requires_grad_()
    scores = mix.differentiable(x, prompts, update=False)
    scores.total.sum().backward()
    expected = torch.zeros_like(images)
    expected[:, 0] = 3 / math.sqrt(mix.norms["r"].variance) / (12 * 10)
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-8)
    assert not scores.parts["r"].requires_grad
    torch.testing.assert_close(scores.total.detach(), mix.mix(mix.score(images, prompts), update=False).total)


def test_rewards_that_cannot_be_differentiated_are_named(images, prompts):
    mix = RewardMix([("red", red), ("length", length)])
    assert not mix.is_differentiable
    with pytest.raises(ConfigError, match=r"length cannot be differentiated \(red can\)"):
        mix.differentiable(images, prompts)


def test_a_false_claim_of_differentiability_is_noticed(images, prompts):
    def liar(images, prompts):
        return images.detach().mean((1, 2, 3))

    liar.differentiable = True
    with pytest.raises(RewardError, match="carries no gradient"):
        RewardMix([("liar", liar)]).differentiable(images.requires_grad_(), prompts)


@pytest.mark.parametrize("parts", [[], [("a", red), ("a", length)], [("a", red, math.inf)]])
def test_mixes_that_cannot_be(parts):
    with pytest.raises(ValueError, match=r"labels|finite"):
        RewardMix(parts)
