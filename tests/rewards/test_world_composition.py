"""The reward `composition` with the built-in detector: the built-in model's world, by the words of its prompts, and its gradient."""

import json

import pytest
import torch
from world_pictures import FOX, FOXES, NOTHING, RED_CAR, STAR_AND_OWL, Seeing, pictures

from rlcm.builtin.detector import RewardDetector
from rlcm.builtin.graded import graded
from rlcm.builtin.vocabulary import known
from rlcm.errors import ConfigError
from rlcm.rewards import RewardMix, RewardSettings, build_reward, build_rewards
from rlcm.rewards.verified.composition import Composition
from rlcm.training.build import build
from rlcm.training.config import load_config

PROMPTS = ["a fox", "a red car", "a star left of an owl", "three foxes", "a red heart and a blue boat"]


def reward_with(detector, **args):
    reward = Composition(**args)
    reward.world._detector = lambda: detector
    return reward


@pytest.fixture
def network():
    """The detector of rewards with weights of no training."""
    torch.manual_seed(3)
    return RewardDetector().eval().requires_grad_(False)


def test_what_was_asked_is_read_off_the_prompt():
    images = pictures(FOX, FOXES, FOXES, RED_CAR, STAR_AND_OWL, STAR_AND_OWL)
    prompts = ["a fox", "a fox", "two foxes", "a red car", "a star left of an owl", "an owl left of a star"]
    scores = reward_with(Seeing())(images, prompts, [{}] * 6)
    assert scores.tolist() == [1, 0, 1, 1, 1, 0]
    assert scores.dtype == torch.float32


def test_metadata_go_before_words():
    two = {"include": [{"class": "fox", "count": 2}]}
    assert reward_with(Seeing())(pictures(FOX, FOXES), ["a fox", "anything"], [two, two]).tolist() == [0, 1]


def test_reasons_say_what_is_seen():
    images = pictures(NOTHING, FOXES, RED_CAR, FOX)
    found = reward_with(Seeing()).verdicts(images, ["a fox", "a fox", "a fox", "a fox"], [{}] * 4)
    assert [one.right for one in found] == [False, False, False, True]
    assert [one.share for one in found] == [0.5, 0.5, 0.5, 1]
    assert [one.reasons for one in found] == [("seen: nothing",), ("seen: fox, fox",), ("seen: red car",), ()]


@pytest.mark.parametrize("graded", [False, True])
def test_prompts_that_it_cannot_judge_are_refused(graded):
    reward = Composition(graded=graded)
    reward.check_prompts(PROMPTS, [{}] * 5)
    bench = {"include": [{"class": "bench", "count": 1}]}
    for prompt, entry in (("a camel at dawn", {}), ("a bench", bench), ("a fox", bench)):
        with pytest.raises(ConfigError, match=f"'{prompt}' asks for nothing that the built-in .*dog, cat.*grounding-dino"):
            reward.check_prompts(["a fox", prompt], [{}, entry])
        with pytest.raises(ConfigError, match="asks for nothing"):
            reward(pictures(FOX, FOX), ["a fox", prompt], [{}, entry])
    with pytest.raises(ConfigError, match="'a fox' does not say what must be in its picture"):
        reward.check_prompts(["a fox"], [{"include": "a fox"}])


def test_prompts_are_refused_before_a_model_is_loaded():
    def begin(*changes):
        return build(load_config(None, ["rewards=[composition]", "model.path=/nowhere", *changes]))

    with pytest.raises(ConfigError, match=r"reward composition: .*'a llama' asks for nothing.*docs/rewards\.md"):
        begin('prompts=["a fox", "a llama"]')
    with pytest.raises(ConfigError, match=r"reward composition: .*'a horse' asks for nothing"):
        begin("prompts=world", 'evaluation.prompts=["a horse"]')


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"threshold": 0.5}, r"threshold=0\.5"),
        ({"counting_threshold": 0.0}, r"counting_threshold=0\.0"),
        ({"revision": "main", "clip": "a/b"}, "revision=main, clip=a/b"),
        ({"clip_revision": "main"}, "clip_revision=main"),
    ],
)
def test_what_only_other_detectors_take_is_refused(args, named):
    with pytest.raises(ConfigError, match=f"{named}: for a detector that `model` names"):
        build_rewards([RewardSettings(name="composition", args=args)])
    with pytest.raises(ConfigError, match=r"2\.0 is not between 0 and 1"):
        build_rewards([RewardSettings(name="composition", args={"threshold": 2.0})])


def test_it_needs_no_download_and_says_what_it_is():
    plain, smooth = (build_reward(RewardSettings(name="composition", args=args)) for args in ({}, {"graded": True}))
    assert plain.sources == smooth.sources == []
    assert (plain.display["label"], smooth.display["label"]) == ("right pictures", "demands met")


def test_the_packaged_detector_answers():
    images = torch.rand(5, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    both = (("right", {}), ("graded", {"graded": True}))
    mix = build_rewards([RewardSettings(name="composition", label=label, args=args) for label, args in both])
    scores = mix(images, PROMPTS)
    assert set(scores.parts["right"].tolist()) <= {0, 1}
    assert ((scores.parts["graded"] >= 0) & (scores.parts["graded"] <= 1)).all()


# Its graded form


def test_it_is_differentiable_where_it_is_graded_and_built_in():
    assert Composition(graded=True).differentiable
    assert not Composition().differentiable
    assert not Composition(graded=True, model=".").differentiable
    with pytest.raises(ConfigError, match="composition cannot be differentiated"):
        build_rewards([RewardSettings(name="composition")]).differentiable(pictures(FOX), ["a fox"])


@pytest.mark.parametrize("size", [64, 96])
def test_a_step_along_its_gradient_makes_it_larger(network, size):
    images = torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    reward = reward_with(network, graded=True)
    mix = RewardMix([("composition", reward)])
    total = mix.differentiable(images, PROMPTS).total
    assert total.shape == (5,)
    (gradient,) = torch.autograd.grad(total.sum(), images)
    assert gradient.isfinite().all()
    lengths = gradient.flatten(1).norm(dim=1)
    assert (lengths > 0).all()
    with torch.no_grad():
        after = reward(images + 0.05 * gradient / lengths[:, None, None, None], PROMPTS, [{}] * 5)
    assert (after > total.detach()).all()


def test_each_picture_has_the_gradient_of_its_own_prompt(network):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    reward = reward_with(network, graded=True)
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:3], [{}] * 3)[1], images)
    assert gradient[1].abs().sum() > 0
    assert not gradient[[0, 2]].any()


def test_it_is_the_graded_verdict_of_what_the_detector_says(network):
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    found = reward_with(network, graded=True)(images, PROMPTS, [{}] * 5)
    torch.testing.assert_close(found, graded(network(images), [known(prompt, {}) for prompt in PROMPTS]))


def test_a_colour_that_is_null_is_not_asked_for(network):
    entry = json.loads('{"include": [{"class": "car", "count": 1, "color": null}]}')
    plain = {"include": [{"class": "car", "count": 1}]}
    assert reward_with(Seeing())(pictures(RED_CAR), ["a car"], [entry]).tolist() == [1]
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    first, second = reward_with(network, graded=True)(images[:1].repeat(2, 1, 1, 1), ["a car"] * 2, [entry, plain])
    assert first == second
