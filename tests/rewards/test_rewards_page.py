"""The examples of docs/rewards.md do what the page says."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from rlcm.rewards import BUILT_IN, RewardList, RewardMix, RewardSettings, build_rewards
from rlcm.rewards.taste import VotesFile

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")


@pytest.fixture
def file(tmp_path):
    """All Python of the page as one file, as the page says."""
    path = tmp_path / "my_rewards.py"
    path.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    return path


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("blueness", {}),
        ("near_colour", {"green": 0.5}),
        ("Classifier", {"wanted": 1}),
        ("right_count", {}),
        ("two_sides", {}),
        ("by_web_service", {}),
    ],
)
def test_functions(file, images, prompts, name, args):
    scores = build_rewards([RewardSettings(name=f"{file}:{name}", args=args)])(images, prompts)
    assert scores.total.isfinite().all()
    assert scores.total.shape == (5,)


def test_values(file, images, prompts):
    mix = build_rewards([RewardSettings(name=f"{file}:{name}") for name in ("blueness", "two_sides", "right_count")])
    scores = mix(images, prompts, [{"count": i} for i in range(5)])
    torch.testing.assert_close(scores.parts["blueness"], images[:, 2].mean((1, 2)) - images[:, 0].mean((1, 2)))
    assert set(scores.parts) == {"blueness", "two_sides/bright", "two_sides/flat", "right_count"}
    assert scores.parts["right_count"].tolist() == [-1.0, 0.0, -1.0, -2.0, -3.0]


def test_the_mark_of_differentiability(file):
    assert build_rewards([RewardSettings(name=f"{file}:blueness")]).is_differentiable


def test_every_list_of_rewards_is_valid():
    blocks = re.findall(r"(?m)^    rewards:\n(?:^      .*\n)+", PAGE)
    assert len(blocks) == 5
    for block in blocks:
        assert TypeAdapter(RewardList).validate_python(yaml.safe_load(block)["rewards"])


def test_the_table_is_complete():
    assert re.findall(r"(?m)^\| `(\w+)` \|.*\|.*\|.*\|$", PAGE.partition("## What is built in")[2]) == list(BUILT_IN)


def test_gradients_are_where_the_table_says(tmp_path):
    votes = VotesFile(tmp_path / "votes.jsonl")
    for _ in range(2):
        votes.add("a fox", torch.rand(2, 3, 8, 8), [0])
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \|.*\|.*\| (yes)? ?\|$", PAGE.partition("## What is built in")[2]))
    assert set(rows) == set(BUILT_IN)
    for name, yes in rows.items():
        args = {
            "imscore": {"revision": "0"},
            "composition": {"model": "."},
            "taste": {"votes": str(votes.path)},
            "vlm": {"model": "m", "endpoint": "http://h/v1"},
        }.get(name.partition("_")[0], {})
        if not name.startswith("vlm"):
            assert build_rewards([RewardSettings(name=name, args=args)]).is_differentiable == bool(yes), name
        else:
            pytest.importorskip("httpx")
            assert not build_rewards([RewardSettings(name=name, args=args)]).is_differentiable
            assert not yes


def test_objects_from_python(images, prompts):
    assert isinstance(RewardMix([("mine", lambda images, prompts: [1.0] * len(prompts))])(images, prompts).total, torch.Tensor)


def test_the_figures_of_overlap_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks" / "results" / "overlap.json").read_text())
    rows = re.findall(r"(?m)^\| (in this process|from a server) \| (\d) \| (\S+) \| (\S+) \| (\S+) \|$", PAGE)
    expected = [
        (
            name,
            batches,
            f"{found['median']['over_longer']:.2f}",
            f"{found['median']['over_sum']:.2f}",
            f"{found['at_best']:.3g}",
        )
        for name, kind in (("in this process", "here"), ("from a server", "server"))
        for batches, found in measured[kind].items()
    ]
    assert rows == expected
    assert f"medians of {measured['repeats']} repeats" in PAGE
    assert all(measured[kind]["8"]["median"]["over_longer"] <= 1.25 for kind in ("here", "server"))
