"""The report page and the before/after picture of synthetic run directories: whole, stopped early, damaged, hostile, large."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written_runs import PROMPTS, SEEDS, SIZE, Page, evaluation, picture, write_evaluations, write_metrics, write_samples

from rlcm.errors import RunDirectoryError
from rlcm.report import before_after_picture, read_run, write_report
from rlcm.report.picture import telling
from rlcm.report.words import headline_by_judge


def test_headline_says_what_happened(run: Path) -> None:
    page = Page(write_report(run))
    assert page.headline == (
        "JPEG size fell 31 % (1.65 → 1.14 kB) in 3 min 12 s; the judge finds 98.1 % of the pictures right (98.4 % before)."
    )
    assert "the built-in model" in page.text
    assert "2,000 images scored" in page.text


@pytest.mark.parametrize(
    ("before", "after", "metric", "expected"),
    [
        (-1.65, -2.31, "JPEG", "JPEG size rose 40 % (1.65 → 2.31 kB) in 3 min 12 s, the wrong way;"),
        (-1.65, -1.64, "JPEG", "JPEG size hardly changed (1.65 → 1.64 kB) in 3 min 12 s;"),
        (5.95, 8.1, None, "Jpeg rose 36 % (5.95 → 8.10) in 3 min 12 s;"),
        (-182.0, -10.0, None, "Jpeg rose by 172 (−182 → −10) in 3 min 12 s;"),
        (
            175.0,
            640.0,
            {"label": "JPEG size", "unit": "kB", "better": "higher"},
            "JPEG size rose 266 % (175 → 640 kB) in 3 min 12 s;",
        ),
    ],
)
def test_headline_follows_sign_and_direction(run: Path, before: float, after: float, metric: Any, expected: str) -> None:
    write_evaluations(run, evaluation(0, before), evaluation(20, after), metric=metric)
    assert Page(write_report(run)).headline.startswith(expected)


PENALTY: dict[str, Any] = SIZE | {"penalty": True}


@pytest.mark.parametrize(
    ("metric", "sign", "expected"),
    [
        (None, 1, "Jpeg fell 31 % (1.65 → 1.14) in 3 min 12 s;"),
        (PENALTY, 1, "JPEG size fell 31 % (1.65 → 1.14 kB) in 3 min 12 s;"),
        # The reward is minus the size, so that its penalty wants large files.
        (PENALTY | {"better": "higher"}, -1, "JPEG size fell 31 % (1.65 → 1.14 kB) in 3 min 12 s, the wrong way;"),
    ],
)
def test_less_of_a_penalty_is_better(run: Path, metric: Any, sign: int, expected: str) -> None:
    with open(run / "config.yaml", "a") as file:
        file.write("rewards: [{name: jpeg, label: jpeg, weight: -2}]\n")
    looks = [
        evaluation(n, sign * value) | {"reward": {"mean": -2 * sign * value, "ci95": 0.06}}
        for n, value in ((0, 1.65), (20, 1.14))
    ]
    write_evaluations(run, *looks, metric=metric)
    write_metrics(run, 20, 1.65 * sign, 1.14 * sign)
    write_samples(run, 20, values=[0.0] * 6, rewards={"total": [-2.0 * sign] * 6, "jpeg": [1.0 * sign] * 6})
    page = Page(write_report(run))
    assert page.headline.startswith(expected)
    found = read_run(run)
    assert ("(lower is better)" in page.text) is found.metric.lower_is_better is (sign > 0)
    assert found.pairs(1)[0].after.value == 1.0
    # Where only the weighted sum is known, less of it is worse.
    assert found.metric.of_round({"reward": -2.0 * sign}) == 2.0


def test_headline_admits_what_the_judge_lost(run: Path) -> None:
    write_evaluations(run, evaluation(0, -1.65), evaluation(20, -0.8, judge=0.41))
    assert "the judge finds 41.0 % of the pictures right (98.4 % before)" in Page(write_report(run)).headline


@pytest.mark.parametrize(("after", "words"), [(0.41, "now recognises only 41.0 %"), (0.981, "still recognises 98.1 %")])
def test_a_run_that_an_earlier_judge_looked_at_is_told_in_its_words(run: Path, after: float, words: str) -> None:
    looks = [evaluation(n, -1.65) | {"judge": {"animal": {"mean": v, "ci95": 0.01}}} for n, v in ((0, 0.984), (20, after))]
    write_evaluations(run, *looks)
    page = Page(write_report(run))
    assert f"the judge {words} of the animals (98.4 % before)" in page.headline
    assert "Judge: animal recognised" in page.text


def test_page_needs_nothing_but_itself(run: Path) -> None:
    path = write_report(run)
    page = Page(path)
    assert path == run / "report.html"
    assert path.stat().st_size < 1_000_000
    assert all(address.startswith(("data:", "#")) for address in page.loaded)
    assert not re.search(r"@import|url\((?!#)|<script", page.source)
    assert len(page.ids) == len(set(page.ids))
    # Links go to files of the run, relative, so that the folder can be moved.
    assert "final/pytorch_lora_weights.safetensors" in page.links
    assert all((run / link).exists() for link in page.links)


def test_sections_of_a_whole_run(run: Path) -> None:
    page = Page(write_report(run))
    for words in (
        "before and after", "How it learned", "One picture through the rounds", "In numbers", "Is the reward honest?",
        "Where the time went", "Use it", 'pipe.load_lora_weights("final")', "The whole configuration", "KL divergence",
        "Judge: right pictures", "✓ right", "✗ wrong", "Diversity",
        "Inside the updates", "1.65 ± 0.03 kB", "−31 %", "−0.3 points", "431 kB",
    ):  # fmt: skip
        assert words in page.text, words
    assert "Not in this folder" not in page.text
    # Waiting counts, scoring beside the sampling does not: 1 + .5 + 2.5 seconds a round.
    assert "sampling 20 s, 25 %" in page.text
    assert "waiting for rewards 10 s, 12 %" in page.text
    assert "learning 50 s, 62 %" in page.text
    assert "Scoring took 1 min 40 s" in page.text


def test_pictures_are_the_cells_without_loss(run: Path) -> None:
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="(before|after): a cat">', Page(write_report(run)).source)
    assert [when for _, when in found] == ["before", "after"]
    for (encoded, _), number in zip(found, (0, 20), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
        np.testing.assert_array_equal(shown, picture(0, number, 24, 20))


def test_pairs_match_prompts_and_seeds_not_places(run: Path) -> None:
    # The last grid lists the cells in another order and with one new seed: five pairs, each of one prompt.
    write_samples(run, 20, values=[-1.0, -1.1, -1.2, -1.3, -1.4, -1.5], prompts=PROMPTS[::-1], seeds=[99, *SEEDS[-2::-1]])
    pairs = read_run(run).pairs(16)
    assert [pair.prompt for pair in pairs] == PROMPTS[-2::-1]
    assert [pair.after.value for pair in pairs] == pytest.approx([1.1, 1.2, 1.3, 1.4, 1.5])
    assert [pair.before.value for pair in pairs] == pytest.approx([1.64, 1.63, 1.62, 1.61, 1.6])


def test_text_of_others_is_escaped(run: Path) -> None:
    hostile = '<script>alert(1)</script>"$\\frac{1'
    write_evaluations(
        run, evaluation(0, -1.65), evaluation(20, -1.1), metric={"label": hostile, "unit": "</svg>", "better": "lower"}
    )
    (run / "config.yaml").write_text(f"name: '{hostile}'\n")
    (run / "<img src=x onerror=y>.txt").write_text("")
    page = Page(write_report(run))
    assert "<script" not in page.source
    assert "<b>bold" not in page.source
    assert "a <b>bold</b> & long-named ant" in page.text
    assert all(address.startswith(("data:", "#")) for address in page.loaded)


def test_stopped_run_says_what_is_missing(run: Path) -> None:
    (run / "final/pytorch_lora_weights.safetensors").unlink()
    (run / "final/README.md").unlink()
    write_evaluations(run, evaluation(0, -1.65))
    for number in (10, 20):
        (run / f"samples/round-{number:06d}.png").unlink()
        (run / f"samples/round-{number:06d}.json").unlink()
    write_metrics(run, 7)
    page = Page(write_report(run))
    assert page.headline.startswith("JPEG size fell 31 % (1.65 → 1.14 kB) in 1 min 07 s over the training pictures")
    assert "this page was written after round 7 of 20" in page.text
    assert "rlcm train --resume" in page.text
    assert "those of round 0 are the only ones" in page.text
    assert "An evaluation after the base model's" in page.text
    assert "Pictures of round 0" in page.text
    assert "In numbers" not in page.text
    assert "Use it" not in page.text
    with pytest.raises(RunDirectoryError, match="no before and after"):
        before_after_picture(run, run / "picture.png")


def test_a_run_that_went_on_beyond_its_result_tells_of_the_result(run: Path) -> None:
    looks = json.loads((run / "eval.json").read_text()) | {"final_round": 10}
    (run / "eval.json").write_text(json.dumps(looks))
    page = Page(write_report(run))
    assert page.headline.startswith("JPEG size fell 21 % (1.65 → 1.30 kB) in 1 min 36 s;")
    assert "The LoRA of round 20: final/ has that of round 10" in page.text
    assert "run.rounds=20 behind that ends it there" in page.text
    assert [pair.after.round for pair in read_run(run).pairs(2)] == [10, 10]
    assert [row["round"] for row in read_run(run).up_to_final().rounds] == list(range(1, 11))
    # With evaluation.final=best rounds after the result are as it should be.
    with open(run / "config.yaml", "a") as file:
        file.write("evaluation: {final: best}\n")
    page = Page(write_report(run))
    assert "Not in this folder" not in page.text
    assert page.headline.startswith("JPEG size fell 21 % (1.65 → 1.30 kB) in 3 min 12 s;")
    assert "Round 0 and round 10; below each picture" in page.text


@pytest.mark.parametrize("only", ["config.yaml", "metrics.jsonl", "eval.json", "samples", "final"])
def test_any_single_part_gives_a_page(run: Path, tmp_path: Path, only: str) -> None:
    (tmp_path / "part").mkdir()
    (run / only).rename(tmp_path / "part" / only)
    page = Page(write_report(tmp_path / "part"))
    assert page.headline
    assert "Not in this folder" in page.text


def test_damaged_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"round": 21, "rew\nnull\n{"reward": 1}\n')
    (run / "samples/round-000010.png").write_bytes((run / "samples/round-000010.png").read_bytes()[:-40])
    (run / "samples/round-000005.json").write_text('{"round": 5, "columns": 0, "cell": [24, 20], "prompts": [], "seeds": []}')
    (run / "samples/round-000006.json").write_text("[1, 2]")
    (run / "config.yaml").write_text("a: [1\n")
    page = Page(write_report(run))
    assert "3 lines of metrics.jsonl that cannot be read" in page.text
    for number in (5, 6, 10):
        assert f"round-{number:06d}.png: they or their description cannot be read" in page.text
    assert "Part of config.yaml" in page.text
    assert page.headline.startswith("JPEG size fell 31 %")
    (run / "eval.json").write_text('{"primary_metric"')
    page = Page(write_report(run))
    assert "The content of eval.json: it is damaged." in page.text
    assert page.headline.startswith("Jpeg rose")  # from the rewards of the rounds, as they are


def test_a_configuration_that_is_no_text_is_not_called_cut_short(run: Path) -> None:
    (run / "config.yaml").write_bytes(b"\xff\xfe\x00name: x\n")
    text = Page(write_report(run)).text
    assert "config.yaml: it cannot be read" in text
    assert "cut short" not in text


def test_values_that_are_no_numbers_are_left_out(run: Path) -> None:
    (run / "metrics.jsonl").write_text(
        '{"round": 1, "reward": NaN, "seconds": null}\n{"round": 2, "reward": "x", "kl": Infinity}\n'
    )
    broken = evaluation(20, float("nan")) | {"judge": None, "guard": {"diversity": None}, "images_per_second": "fast"}
    write_evaluations(run, evaluation(0, -1.65) | {"rewards": [], "judge": 3}, broken, metric=None)
    write_samples(run, 20, values=[float("nan")] * 5, rewards={"total": None})
    page = Page(write_report(run))
    assert "no two measurements to compare" in page.headline
    assert not re.search(r"\b(nan|inf|none|null)\b", page.text.lower())


def test_several_rewards_are_shown_one_by_one(run: Path) -> None:
    first, last = evaluation(0, 1.0), evaluation(20, 2.0)
    for found, other in ((first, 0.5), (last, 0.25)):
        found["rewards"] = {"jpeg": {"mean": 0.1, "ci95": 0.01}, "beauty/face": {"mean": other, "ci95": 0.01}}
    write_evaluations(run, first, last, metric=None)
    page = Page(write_report(run))
    assert page.headline.startswith("The sum of rewards rose 100 % (1.00 → 2.00)")
    assert "beauty/face One of the rewards. 0.500 ± 0.010 0.250 ± 0.010 −50 %" in page.text


def test_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="does not exist"):
        write_report(tmp_path / "absent")
    with pytest.raises(RunDirectoryError, match="holds no run"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_page_that_cannot_be_written_is_an_error(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(RunDirectoryError, match=r"report\.html is in the way; move it, or .*, then run `rlcm report "):
        write_report(run)


def test_large_runs_make_no_large_page(run: Path) -> None:
    # Noise is what compresses worst; 5000 rounds.
    write_metrics(run, 5000)
    rng = np.random.default_rng(0)
    for number in (0, 10, 20):
        sheet = rng.integers(0, 256, (2 * 768, 4 * 768, 3), dtype=np.uint8)
        write_samples(run, number, values=[-1.0] * 6, cell=(768, 768))
        Image.fromarray(sheet).save(run / f"samples/round-{number:06d}.png", compress_level=1)
    assert write_report(run).stat().st_size < 5_000_000


def test_before_after_picture(run: Path, tmp_path: Path) -> None:
    out = before_after_picture(run, tmp_path / "picture.png", columns=6)
    shown = Image.open(out)
    assert shown.format == "PNG"
    assert shown.size[0] == 1280
    pixels = np.asarray(shown.convert("RGB"))
    assert (pixels[:, :8] == 255).all()  # white margin
    # The disc's colour tells cell and round: red is the round, green 40 a cell.
    middle = [
        np.all(abs(pixels.astype(int) - (number, 40 * i, 255 - number)) < 4, -1).sum() for number in (0, 20) for i in range(6)
    ]
    assert min(middle) > 1000
    fewer = Image.open(before_after_picture(run, tmp_path / "fewer.png", columns=2))
    assert fewer.size[0] == 1280


RIGHTNESS = {"label": "right pictures", "better": "higher", "question": "right"}


@pytest.mark.parametrize(
    ("metric", "after", "shown"),
    [
        (RIGHTNESS, [True, True, True, False, False, False], [0, 2, 4]),  # two were mended, one stayed wrong
        (RIGHTNESS, [True, True, True, False, True, True], [0, 2, 4]),  # all were mended that were wrong
        (RIGHTNESS, [False, True, False, True, False, False], [0, 1, 2]),  # nothing was mended: the first of the set
        (SIZE, [True, True, True, False, False, False], [0, 1, 2]),  # the reward was for something else
    ],
)
def test_the_picture_shows_what_was_mended_and_one_that_stayed_wrong(
    run: Path, tmp_path: Path, metric: Any, after: list[bool], shown: list[int]
) -> None:
    write_evaluations(run, evaluation(0, -1.0), evaluation(20, -1.0), metric=metric)
    for number, right in ((0, [False, True, False, True, False, False]), (20, after)):
        write_samples(run, number, values=[1.0] * 6, judge={"right": right, "counting": [None] * 6})
    pixels = np.asarray(Image.open(before_after_picture(run, tmp_path / "picture.png", columns=3)).convert("RGB")).astype(int)
    for number in (0, 20):
        discs = [np.all(abs(pixels - (number, 40 * i, 255 - number)) < 4, -1).sum() for i in range(6)]
        assert [i for i, size in enumerate(discs) if size > 1000] == shown


def test_the_picture_of_a_reward_for_right_pictures_begins_with_the_judges_word(run: Path) -> None:
    first, last = evaluation(0, 0.6, judge=0.585), evaluation(20, 0.75, judge=0.659)
    write_evaluations(run, first, last, metric=RIGHTNESS)
    assert headline_by_judge(read_run(run)) == (
        ("Right pictures: ", "58.5\xa0% → 65.9\xa0%", " in 3\xa0min\xa012\xa0s"),
        "a held-out judge says what is right. The reward: right pictures rose 25\xa0% (0.600 → 0.750)",
    )
    write_evaluations(run, first, last)  # the reward was for something else
    assert headline_by_judge(read_run(run)) is None
    write_evaluations(run, first, {**last, "reward": {"mean": None}, "rewards": {}}, metric=RIGHTNESS)
    assert headline_by_judge(read_run(run)) is None


@pytest.mark.parametrize("columns", [0, 11])
def test_columns_out_of_range(run: Path, tmp_path: Path, columns: int) -> None:
    with pytest.raises(ValueError, match="columns="):
        before_after_picture(run, tmp_path / "picture.png", columns=columns)


def test_picture_that_cannot_be_written_is_an_error(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"file \(it is a file\) is in the way; move it, or choose another path"):
        before_after_picture(run, tmp_path / "file" / "picture.png")
    assert before_after_picture(run, tmp_path / "new folder" / "picture.png").is_file()


def test_held_out_rewards_are_in_the_numbers_and_among_the_guards(run: Path) -> None:
    looks = [
        evaluation(n, r) | {"held_out": {"beauty": {"mean": v, "ci95": 0.1}}} for n, r, v in ((0, -1.65, 5.0), (20, -1.1, 4.0))
    ]
    write_evaluations(run, *looks)
    page = Page(write_report(run))
    assert "beauty Held out: measured, not trained on. 5.00 ± 0.10 4.00 ± 0.10 −20 %" in page.text
    assert "Held out: beauty" in page.text


def test_the_pictures_that_tell_come_first_and_one_that_stayed_wrong_last():
    wrong, right = (False, False), (True, True)
    mended = (False, True)
    assert telling([right, mended, wrong, mended, wrong, mended, (None, None)], 3) == (
        [1, 3, 2],
        "Shown: the first that were wrong and became right, and the first that stayed wrong.",
    )
    assert telling([mended, right], 3) == ([0], "Shown: the first that were wrong and became right.")
    for answers in ([right, wrong], [(None, None)] * 2):
        assert telling(answers, 6) == ([0, 1], "")
