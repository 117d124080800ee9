"""From the list `rewards:` to the mix."""

import pytest
import torch

from rlcm.errors import ConfigError
from rlcm.rewards import RewardSettings, build_rewards


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


LISTS = [
    "list[str]",
    "Sequence[str] | None",
    "tuple[str, ...]",
    "typing.List[str]",
    "Optional[list[str]]",
    "Optional[Sequence[str]]",
]


@pytest.mark.parametrize("future", ["from __future__ import annotations", ""])
@pytest.mark.parametrize(
    "annotation", [*LISTS, "str | list[str]", "list[str | int]", "tuple[str, int]", "Union[str, List[str]]", "list"]
)
def test_what_takes_a_list_of_texts_takes_no_text(annotation, future, tmp_path):
    (tmp_path / "own.py").write_text(
        f"{future}\nimport typing\nfrom collections.abc import Sequence\nfrom typing import List, Optional, Union\n\n\nclass Own:\n"
        f"    def __init__(self, words: {annotation} = ()):\n        self.words = words\n\n"
        "    def __call__(self, images, prompts):\n        return [float(len(self.words))] * len(prompts)\n"
    )

    def value(words):
        settings = RewardSettings(name=f"{tmp_path / 'own.py'}:Own", args={"words": words})
        return build_rewards([settings])(torch.zeros(1, 3, 8, 8), ["a"]).total.item()

    assert value(["red", "blue"]) == value(("red", "blue")) == 2
    if annotation not in LISTS:
        assert value("red") == 3
        assert value(["red", 2]) == 2
        return
    with pytest.raises(ConfigError, match=r"takes a list of texts; write words: \[red\]"):
        value("red")
    with pytest.raises(ConfigError, match="is no list of texts"):
        value(["red", 2])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (RewardSettings(name="jpeg_compressability"), "did you mean jpeg_compressibility"),
        (RewardSettings(name="zzzz"), "the built-in ones are jpeg_compressibility"),
        (RewardSettings(name="jpeg_compressibility", args={"qualty": 3}), "it takes quality, subsampling, threads"),
        (RewardSettings(name="jpeg_compressibility", args={"quality": 300}), "not in 1 .. 95"),
        (
            RewardSettings(name="http://127.0.0.1:9", args={"rewards": "meta"}),
            r"takes a list of texts; write rewards: \[meta\]",
        ),
        (RewardSettings(name="http://127.0.0.1:9", args={"servers": "http://a:1"}), r"write servers: \[http://a:1\]"),
        (RewardSettings(name="composition", args={"colours": "red", "model": "m"}), r"write colours: \[red\]"),
        (RewardSettings(name="composition", args={"colours": [1], "model": "m"}), "is no list of texts"),
        (
            RewardSettings(name="jpeg_compressibility", args={"quality": "90"}),
            "quality='90': input should be a valid integer, written",
        ),
        (
            RewardSettings(name="brightness", args={"target": True}),
            "target=True: input should be a valid number, not true or false",
        ),
        (
            RewardSettings(name="brightness", args={"target": "nan"}),
            "target='nan': input should be a valid number, written in digits",
        ),
        (RewardSettings(name="brightness", args={"target": float("nan")}), "target=nan is not in 0 .. 1"),
    ],
)
def test_build_mistakes(settings, text):
    with pytest.raises(ConfigError, match=text):
        build_rewards([settings])
