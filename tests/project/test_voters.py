"""Simulated voters: what they like, how they err, and a study in small that is not made twice."""

from dataclasses import asdict, replace

import pytest
import torch
from tiny_runs import lcm_pipeline

from benchmarks.shared import results
from benchmarks.shared.places import DOCS, RESULTS
from benchmarks.voting import cells as study
from benchmarks.voting.cells import AtOnce, Plan, cells, measured
from benchmarks.voting.oracles import MEANINGS, ORACLES, Voter, few, low, warm
from benchmarks.voting.page import NOT_YET, page, share_of
from rlcm.training.config import load_config
from rlcm.ui.teaching import Teaching


def things(*boxes, ground=(0.9, 0.95, 1.0), side=20):
    """Return a picture [1, 3, side, side]: boxes (top, left, height, width) of dark red on a pale ground."""
    image = torch.tensor(ground)[:, None, None].repeat(1, side, side)
    for top, left, height, width in boxes:
        image[:, top : top + height, left : left + width] = torch.tensor([0.6, 0.1, 0.1])[:, None, None]
    return image[None]


def test_a_colour_is_a_mean_of_the_picture():
    images = torch.stack([torch.tensor(rgb)[:, None, None].expand(3, 4, 6) for rgb in ([1.0, 0.5, 0.0], [0.2, 0.9, 0.6])])
    assert warm(images, ["", ""]).tolist() == pytest.approx([1.0, -0.4])


def test_a_position_is_that_of_what_is_not_ground():
    high, both, below = things((2, 3, 4, 4)), things((2, 3, 4, 4), (14, 9, 4, 4)), things((14, 15, 4, 2))
    assert low(torch.cat([high, both, below, things()]), [""] * 4).tolist() == pytest.approx([0.2, 0.5, 0.8, 0.5])
    shaded = below * torch.linspace(1, 0.88, 20)[:, None]
    assert float(low(shaded, [""])) == pytest.approx(0.8, abs=0.01)


def test_few_things_leave_much_ground():
    images = torch.cat([things(), things((2, 3, 4, 5)), things((2, 3, 4, 5), (12, 9, 5, 4))])
    assert few(images, [""] * 3).tolist() == pytest.approx([0, -0.05, -0.1])


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.3, 1.0])
def test_a_voter_errs_as_often_as_it_is_told_and_anywhere(wrong):
    images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    best = int(warm(images, [""] * 4).argmax())
    voter, again = Voter(warm, wrong, 5), Voter(warm, wrong, 5)
    votes = [voter.chooses(images) for _ in range(1500)]
    assert votes == [again.chooses(images) for _ in range(1500)]
    shares = [votes.count(place) / 1500 for place in range(4)]
    assert shares[best] == pytest.approx(1 - wrong, abs=0.04)
    assert [share for place, share in enumerate(shares) if place != best] == pytest.approx([wrong / 3] * 3, abs=0.04)


def test_what_the_bars_need_comes_first_and_nothing_twice():
    every = cells(list(ORACLES), [0.0, 0.1, 0.3], [0, 1, 2])
    assert len(set(every)) == len(every) == 9 + 27 + 3
    assert [cell.wrong for cell in every] == [0.0] * 18 + [0.3] * 9 + [0.0] * 3 + [0.1] * 9
    assert {cell.source for cell in every[:9]} == {"direct"}
    assert len(cells(["warm"], [0.0], [0])) == 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A study of a tiny model."""
    model = tmp_path_factory.mktemp("tiny")
    lcm_pipeline().save_pretrained(model)
    settings = ("sampler.steps=2", "lora.rank=4", "rollout.batch_size=8", "rollout.branches=4", f"model.path={model}")
    return Plan(votes=4, votes_a_training=2, rounds_a_training=1, images=6, settings=settings)


def test_a_voter_without_errors_is_learnt_better_than_chance(tiny, tmp_path, monkeypatch):
    teaching = Teaching(AtOnce(tmp_path), "taught", ["a fox"], load_config(None, list(tiny.settings)), choice="random")
    tints = torch.Generator().manual_seed(0)
    drawn = lambda model, prompts, seeds: torch.rand(len(seeds), 3, 1, 1, generator=tints).expand(-1, -1, 64, 64)  # noqa: E731
    monkeypatch.setattr(teaching, "_pictures", drawn)
    voter = Voter(warm, 0.0, 0)
    for count in range(1, 41):
        question = teaching.ask()
        teaching.vote(question.id, [voter.chooses(question.images)])
        if count % 10 == 0:
            teaching.prepare()
    standing = teaching.standing()
    assert standing.asked == 20
    assert standing.guessed > 13  # 5 by chance


def test_a_study_is_gone_on_with_and_nothing_of_it_is_made_twice(tiny, tmp_path, monkeypatch):
    every = [cell for cell in cells(["warm"], [0.0], [0]) if cell.source != "random"]
    made = [measured(cell, tiny, tmp_path, whole_curve=cell.source == "active") for cell in every]
    assert [[(look["votes"], look["rounds"]) for look in cell["looks"]] for cell in made] == [[(4, 2)], [(2, 1), (4, 2)]]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base.json", *sorted(f"{cell.name}.json" for cell in every)]
    text = page({"machine": "a machine", "plan": asdict(tiny), "left": 1, "cells": made})
    assert NOT_YET not in text
    assert "| `warm` | 0% |" in text
    assert "1 training of the study was left out for time." in text

    trained = []
    monkeypatch.setattr(study, "_trained", lambda cell, *rest: trained.append(cell) or iter([]))
    assert [measured(cell, tiny, tmp_path, whole_curve=cell.source == "active") for cell in every] == made
    assert trained == []
    measured(every[0], replace(tiny, votes=2), tmp_path, whole_curve=False)
    assert trained == every[:1], "of another plan"


# The page


def looked(gain, right):
    """Return what came of a training, as its last look has it."""
    value = {
        "before": {"mean": 0.1, "ci95": 0.02},
        "after": {"mean": 0.1 + gain, "ci95": 0.02},
        "gain": {"mean": gain, "ci95": 0.01},
    }
    return {"votes": 40, "rounds": 3, "value": value, "right": {"gain": {"mean": right, "ci95": 0.02}}}


def outcome(source, gain, right=0.0, wrong=0.0, seed=0):
    """Return a training's cell."""
    cell = {"oracle": "warm", "source": source, "wrong": wrong, "seed": seed, "cpu_seconds": 60.0}
    return cell | {"looks": [looked(gain, right)]}


def test_missed_bars_are_said_plainly():
    cells = [outcome("direct", 0.2), outcome("direct", 0.4, seed=1)]
    cells += [outcome("active", 0.15), outcome("active", 0.3, seed=1)]
    cells += [outcome("active", 0.1, -0.05, wrong, seed) for wrong in (0.1, 0.3) for seed in (0, 1)]
    plan = Plan(40, 40, 3, 90, ("rollout.batch_size=32",))
    text = page({"machine": "a machine", "plan": asdict(plan), "left": 0, "cells": cells})
    assert "| `warm` | 0% | 75% | 75% to 75% | 70% | yes | +0.0 ± 0.0 | yes |" in text
    assert "| `warm` | 10% | 33% | 25% to 50% | 70% | **no** | -5.0 ± 0.0 | **no** |" in text
    assert "| `warm` | 30% | 33% | 25% to 50% | 60% | **no** | -5.0 ± 0.0 | **no** |" in text
    assert "**2 of 3 bars of the gain are missed.** **2 of 3 bars of the judge are missed.**" in text
    assert "left out" not in text


def test_there_is_no_share_of_no_gain():
    assert share_of([(outcome("active", 0.1), outcome("direct", -0.1))]) is None
    assert share_of([(outcome("active", -0.1), outcome("direct", 0.4))]) == pytest.approx(-0.25)


def test_there_is_no_share_of_a_gain_within_its_interval():
    cells = [outcome("direct", 0.009), outcome("active", 0.02)]
    text = page({"machine": "a machine", "plan": asdict(Plan(40, 40, 3, 90, ())), "left": 0, "cells": cells})
    assert "| `warm` | 0% | none: asked directly, nothing clear is gained either |  | 70% | **no** |" in text
    assert "**1 of 1 bars of the gain are missed.**" in text


def test_a_page_without_results_claims_nothing():
    text = page({})
    assert NOT_YET in text
    assert all(f"`{name}`: {meaning}" in text for name, meaning in MEANINGS.items())
    assert "%" not in text


def test_the_page_is_that_of_the_results():
    found = results.read_if_there(RESULTS / "voters.json")
    assert (DOCS / "voters.md").read_text(encoding="utf-8") == page(found)
