"""The mix: sums, normalisation, and no fault that passes for a score."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from rlcm.errors import CheckpointError, ConfigError, RewardError
from rlcm.rewards import RawScores, RewardMix, RewardPart, RewardSettings, build_rewards
from rlcm.rewards.composition import RunningNorm


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


def test_batches_join_into_a_round(images, prompts):
    answers = iter([[1.0] * 5, None])

    def flaky(images, prompts):
        return next(answers)

    mix = RewardMix([("red", red), ("flaky", flaky, 1.0, False, "skip")])
    raw = RawScores.cat([mix.score(images, prompts), mix.score(images[:5], prompts)])
    scores = mix.mix(raw)
    assert scores.valid.tolist() == [True] * 5 + [False] * 5
    assert scores.parts["flaky"].shape == scores.parts["red"].shape == (10,)


def test_components_that_come_and_go_are_noticed():
    one = RawScores({"m/a": torch.ones(2)}, torch.ones(2, dtype=torch.bool))
    two = RawScores({"m/b": torch.ones(2)}, torch.ones(2, dtype=torch.bool))
    with pytest.raises(RewardError, match=r"m/[ab] is in some batches"):
        RawScores.cat([one, two])


class TestRunningNorm:
    def test_matches_the_moments_of_all_values_while_nothing_has_aged(self):
        norm = RunningNorm()
        norm.half_life = math.inf
        values = torch.randn(90, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 100
        for batch in values.split([7, 50, 1, 32]):
            norm.update(batch)
        assert norm.mean == pytest.approx(values.mean().item(), abs=1e-12)
        assert norm.variance == pytest.approx(values.var(unbiased=False).item(), rel=1e-12)

    def test_matches_weighted_moments(self):
        # Weight of a batch = 2^(-samples after it / half_life): weighted mean and variance written out.
        norm = RunningNorm()
        norm.half_life = 10.0
        batches = [torch.tensor([0.0, 4.0], dtype=torch.float64), torch.tensor([10.0, 11.0, 15.0], dtype=torch.float64)]
        for batch in batches:
            norm.update(batch)
        weights = torch.tensor([0.5 ** (3 / 10)] * 2 + [1.0] * 3, dtype=torch.float64)
        values = torch.cat(batches)
        mean = (weights * values).sum() / weights.sum()
        variance = (weights * (values - mean) ** 2).sum() / weights.sum()
        assert norm.mean == pytest.approx(mean.item(), rel=1e-12)
        assert norm.variance == pytest.approx(variance.item(), rel=1e-12)

    def test_forgets(self):
        norm = RunningNorm()
        norm.update(torch.full((1000,), -180.0) + torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 30)
        for seed in range(40):
            norm.update(torch.randn(1000, generator=torch.Generator().manual_seed(seed)) - 10)
        assert norm.mean == pytest.approx(-10, abs=0.1)
        assert norm.variance == pytest.approx(1, abs=0.1)

    def test_equal_values_give_zero(self):
        norm = RunningNorm()
        norm.update(torch.full((3,), 0.1))
        assert norm(torch.full((3,), 0.1)).abs().max() < 1e-6

    def test_a_first_difference_after_equal_values_is_not_blown_up(self):
        norm = RunningNorm()
        norm.update(torch.full((7,), 1 / 3))
        assert norm(torch.tensor([1 / 3 + 1])).item() == pytest.approx(1)


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


def test_build_from_settings(images, prompts):
    mix = build_rewards(
        [
            RewardSettings.model_validate("jpeg_compressibility"),
            RewardSettings(name="jpeg_incompressibility", args={"subsampling": "4:4:4"}, weight=0.5),
        ]
    )
    scores = mix(images, prompts)
    parts = scores.parts
    torch.testing.assert_close(scores.total, parts["jpeg_compressibility"] + 0.5 * parts["jpeg_incompressibility"])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (RewardSettings(name="jpeg_compressability"), "did you mean jpeg_compressibility"),
        (RewardSettings(name="zzzz"), "the built-in ones are jpeg_compressibility"),
        (RewardSettings(name="jpeg_compressibility", args={"qualty": 3}), "it takes quality, subsampling, threads"),
        (RewardSettings(name="jpeg_compressibility", args={"quality": 300}), "not in 1 .. 95"),
    ],
)
def test_build_mistakes(settings, text):
    with pytest.raises(ConfigError, match=text):
        build_rewards([settings])
