"""The rewards `composition` and `ocr` over tiny detectors and the real reader."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from reward_models import clip_folder
from tiny_detectors import class_detector, dino, owl

from rlcm.errors import ConfigError, MissingFileError
from rlcm.rewards import RewardMix, RewardSettings, build_rewards
from rlcm.rewards.learned.clip import Network
from rlcm.rewards.verified.colours import ClipColours
from rlcm.rewards.verified.composition import Composition
from rlcm.rewards.verified.detectors import FLOOR, load_detector
from rlcm.rewards.verified.ocr import Ocr, quoted
from rlcm.rewards.verified.verdict import Found
from rlcm.training.build import build
from rlcm.training.config import load_config

NETWORK = Network(2, "float32", "cpu")


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """A folder a kind."""
    makers = {"classes": class_detector, "owl": owl, "dino": dino}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny random CLIP that reads letters."""
    folder = tmp_path_factory.mktemp("clip")
    clip_folder(folder)
    return folder


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["classes", "owl", "dino"])
def test_boxes_lie_in_the_picture_and_do_not_depend_on_the_batch(detectors, pictures, kind):
    detector = load_detector(detectors[kind], NETWORK)
    asked = [["cat"], ["dog", "cat"], ["mouse"]]
    finds = detector(pictures, asked)
    assert [set(find) for find in finds] == [set(names) for names in asked]
    assert any(objects for find in finds for objects in find.values())
    for index, find in enumerate(finds):
        alone = detector(pictures[index : index + 1], asked[index : index + 1])[0]
        for name, objects in find.items():
            assert all(FLOOR < one.score <= 1 for one in objects)
            assert [one.score for one in objects] == pytest.approx([one.score for one in alone[name]], abs=1e-4)
            # A centre lies in the picture; a box may reach beyond it.
            assert all(-1e-3 <= (one.box[0] + one.box[2]) / 2 <= 32 + 1e-3 for one in objects)


def test_a_detector_that_looks_for_words_knows_no_list(detectors):
    assert load_detector(detectors["owl"], NETWORK).vocabulary is None
    assert load_detector(detectors["classes"], NETWORK).vocabulary == {"cat", "dog", "mouse"}


def test_objects_of_another_class_are_not_mixed_up(detectors, pictures):
    detector = load_detector(detectors["classes"], NETWORK)
    each = detector(pictures, [["cat", "dog", "mouse"]] * 3)
    assert [find["dog"] for find in detector(pictures, [["dog"]] * 3)] == [find["dog"] for find in each]


class Seen:
    """A detector that finds what it was told."""

    vocabulary = None

    def __init__(self, *finds):
        self.finds = finds

    def __call__(self, images, classes):
        return [{name: find.get(name, []) for name in names} for find, names in zip(self.finds, classes, strict=True)]


def reward_that_sees(*finds, **args):
    reward = Composition(model=".", **args)
    reward._detector = lambda: Seen(*finds)
    return reward


def cats(*scores):
    return {"cat": [Found((20 * n, 0, 20 * n + 10, 10), score) for n, score in enumerate(scores)]}


ONE, TWO = ({"tag": tag, "include": [{"class": "cat", "count": n}]} for tag, n in (("single_object", 1), ("counting", 2)))


def test_scores(pictures):
    asked = ["a cat", "two cats", "two cats"]
    finds = cats(0.6), cats(0.6, 0.95), cats(0.95, 0.95)
    assert reward_that_sees(*finds, counting_threshold=0.9)(pictures, asked, [ONE, TWO, TWO]).tolist() == [1, 0, 1]
    graded = reward_that_sees(*finds, counting_threshold=0.9, graded=True)
    assert graded(pictures, asked, [ONE, TWO, TWO]).tolist() == [1, 0.5, 1]
    assert reward_that_sees(*finds, threshold=0.7)(pictures, asked, [ONE, TWO, TWO]).tolist() == [0, 1, 1]


@pytest.mark.parametrize("kind", ["classes", "owl", "dino"])
def test_every_kind_of_detector_answers_for_the_whole_reward(detectors, clip, pictures, kind):
    reward = Composition(model=str(detectors[kind]), clip=str(clip), device="cpu")
    colours = [{"include": [{"class": "cat", "count": 1, "color": "red"}]}] * 3
    assert set(reward(pictures, ["a red cat"] * 3, colours).tolist()) <= {0.0, 1.0}
    for line in reward.verdicts(pictures, ["two cats"] * 3, [TWO] * 3):
        assert line.right == (not line.reasons)


def test_colours_are_those_whose_words_fit_best(clip, pictures):
    from rlcm.rewards.learned.clip import load_clip
    from rlcm.rewards.learned.published import crop

    encoder = load_clip(clip, clip, crop, NETWORK)
    name = ClipColours(encoder, ["red", "green", "blue"])
    boxes = [Found((0, 0, 16, 16), 1.0), Found((-5, 20, 40, 31), 1.0), Found((31.7, 31.9, 31.8, 32), 1.0)]
    said = name(pictures[0], "cat", boxes)
    words = torch.stack([
        encoder.texts([f"a photo of a {c} cat", f"a photo of a {c}-colored cat", f"a photo of a {c} object"]).mean(0)
        for c in ("red", "green", "blue")
    ])  # fmt: skip
    fit = encoder.images(pictures[:1, :, :16, :16]) @ torch.nn.functional.normalize(words, dim=-1).T
    assert said[0] == ("red", "green", "blue")[int(fit.argmax())]
    assert len(said) == 3
    assert name(pictures[0], "cat", []) == []


def test_what_cannot_be_judged_is_refused_before_a_model_is_loaded(detectors, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a red cow", "include": [{"class": "cow", "count": 1}]}) + "\n")
    rewards = [{"name": "composition", "args": {"model": str(detectors["classes"])}}]

    def begin(prompts, rewards=rewards):
        return build(load_config(None, [f"prompts={prompts}", f"rewards={json.dumps(rewards)}", "model.path=/nowhere"]))

    with pytest.raises(ConfigError, match=r"reward composition: .*'a red cow' asks for 'cow'.*cat, dog, mouse"):
        begin(file)
    with pytest.raises(ConfigError, match=r"'a cat' does not say what must be in its picture"):
        begin('["a cat"]')
    with pytest.raises(MissingFileError, match="no model in transformers format"):
        begin(file, [{"name": "composition", "args": {"model": str(tmp_path)}}])
    with pytest.raises(ConfigError, match=r"reward ocr: .*'a sign' has no words in double quotes"):
        begin('["a sign"]', [{"name": "ocr"}])


def test_a_reward_of_ones_own_checks_prompts_behind_the_boundary():
    class Picky:
        def check_prompts(self, prompts, metadata):
            metadata[0]["seen"] = True
            raise SystemExit(0)

        def __call__(self, images, prompts):
            return [0.0] * len(prompts)

    beside = [{}]
    with pytest.raises(ConfigError, match=r"reward picky: its check_prompts .*SystemExit"):
        RewardMix([("picky", Picky())]).check_prompts(["a cat"], beside)
    assert beside == [{}]


def test_a_model_that_is_no_detector(clip):
    reward = Composition(model=str(clip))
    with pytest.raises(MissingFileError, match="holds a CLIP, which is no object detector"):
        reward.check_prompts(["a cat"], [ONE])


def test_coco_s_words_for_geneval_s(detectors, pictures):
    reward = Composition(model=str(detectors["classes"]))
    entry = {"include": [{"class": "computer mouse", "count": 1}]}
    reward.check_prompts(["a photo of a computer mouse"], [entry])
    assert len(reward.verdicts(pictures, ["a photo of a computer mouse"] * 3, [entry] * 3)) == 3


def test_thresholds_out_of_range():
    with pytest.raises(ConfigError, match=r"threshold=1\.5 is not between 0 and 1"):
        build_rewards([RewardSettings(name="composition", args={"model": ".", "threshold": 1.5})])


def written(text, size=26):
    picture = Image.new("RGB", (256, 96), "white")
    for row, line in enumerate(text.split("\n")):
        ImageDraw.Draw(picture).text((12, 10 + 38 * row), line, fill="black", font=ImageFont.load_default(size))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255


def test_ocr_reads_what_is_written():
    images = torch.stack([written("Hello World"), written("Hello World"), written("GRAND\nOPENING"), written("")])
    prompts = ['a sign "Hello World"', 'a sign "Hollo"', "the words \u201cgrand opening\u201d in black", 'a sign "empty"']
    asked, read = "hollo", "helloworld"
    scores = build_rewards([RewardSettings(name="ocr")])(images, prompts).total
    # From helloworld to hollo: one letter is another, five are too many.
    assert scores.tolist() == pytest.approx([1, 1 - 6 / max(len(asked), len(read)), 1, 0])
    strict = Ocr(case_sensitive=True)
    assert strict(images[2:3], ['"grand opening"']).item() == pytest.approx(0.0)


def test_what_stands_in_quotes():
    assert quoted('a "cat" and a "dog"') == "cat dog"
    assert quoted("it's the dog's \u00abnom\u00bb and \u201eName\u201c") == "nom Name"
    assert quoted("it's a sign") == ""
