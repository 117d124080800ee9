"""The report page and the before/after picture of synthetic run directories: whole, stopped early, damaged, hostile, large."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlcm.errors import RunDirectoryError
from rlcm.report import before_after_picture, read_run, write_report
from rlcm.report.steps import rewards_of, y_label

SEEDS, PROMPTS = (
    [11, 12, 13, 14, 15, 16],
    ["a cat", "a dog", "a red fox", "two bees", "a whale", "a <b>bold</b> & long-named ant"],
)
SIZE = {"label": "JPEG size", "unit": "kB", "better": "lower"}
CARD = '# run\n\n```python\npipe = DiffusionPipeline.from_pretrained("somewhere")\npipe.load_lora_weights("final")\n```\n'


def picture(index: int, round_number: int, height: int, width: int) -> np.ndarray[Any, Any]:
    """Return a gradient with a disc, [height, width, 3] uint8, of a colour that belongs to cell and round."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 200 // width, y * 200 // height, np.full_like(x, 20 * index)], -1)
    disc = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 4) ** 2
    base[disc] = (round_number, 40 * index, 255 - round_number)
    return base.astype(np.uint8)


def write_samples(
    run: Path, round_number: int, *, values: list[float], cell: tuple[int, int] = (24, 20), **changed: Any
) -> None:
    """Write a grid of the six prompts in four columns, the last two cells of the second row empty."""
    cells = [picture(i, round_number, *cell) for i in range(6)] + [np.full((*cell, 3), 255, np.uint8)] * 2
    sheet = np.concatenate([np.concatenate(cells[row : row + 4], 1) for row in (0, 4)], 0)
    (run / "samples").mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(run / f"samples/round-{round_number:06d}.png")
    described: dict[str, Any] = {
        "round": round_number, "columns": 4, "cell": list(cell), "prompts": PROMPTS, "seeds": SEEDS,
        "rewards": {"total": values, "jpeg": values}, "judge": {"animal": [True] * 5 + [False]},
    }  # fmt: skip
    (run / f"samples/round-{round_number:06d}.json").write_text(json.dumps(described | changed))


def evaluation(round_number: int, reward: float, judge: float = 0.984) -> dict[str, Any]:
    value = {"mean": reward, "ci95": 0.03}
    return {
        "round": round_number, "name": "tuned" if round_number else "base", "seconds": 9.6 * round_number, "images": 90,
        "steps": 4, "reward": value, "rewards": {"jpeg": value}, "judge": {"animal": {"mean": judge, "ci95": 0.01}},
        "images_per_second": 200.0, "guard": {"diversity": 0.3, "saturated": 0.1},
    }  # fmt: skip


def write_evaluations(run: Path, *evaluations: dict[str, Any], metric: dict[str, str] | str | None = "JPEG") -> None:
    if metric == "JPEG":
        metric = SIZE
    (run / "eval.json").write_text(json.dumps({"primary_metric": metric, "evaluations": evaluations}))


def write_metrics(run: Path, rounds: int, first: float = -1.65, last: float = -1.14) -> None:
    rows = [
        {
            "round": i, "seconds": 9.6 * i, "reward": value, "rewards/jpeg": value, "reward_queries": 100 * i, "kl": 1e-4 * i,
            "time/sample": 1.0, "time/reward": 5.0, "time/reward_wait": 0.5, "time/update": 2.5, "lr": 1e-4, "loss": -0.1,
        }
        for i, value in enumerate(np.linspace(first, last, rounds), 1)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run of twenty rounds: 1.65 -> 1.14 kB in 192 s."""
    path = tmp_path / "demo run"
    (path / "final").mkdir(parents=True)
    (path / "checkpoint-000020").mkdir()
    (path / "config.yaml").write_text("name: demo\nmodel: {path: builtin}\nlora: {rank: 16}\nrun: {rounds: 20}\n")
    write_metrics(path, 20)
    write_evaluations(path, evaluation(0, -1.65), evaluation(10, -1.3, 0.983), evaluation(20, -1.14, 0.981))
    for number, value in ((0, -1.6), (10, -1.3), (20, -1.1)):
        write_samples(path, number, values=[value - 0.01 * i for i in range(6)])
    (path / "final/pytorch_lora_weights.safetensors").write_bytes(bytes(431_000))
    (path / "final/README.md").write_text(CARD)
    (path / "checkpoint-000020/state.json").write_text("{}")
    return path


class Page(HTMLParser):
    """A parsed page: its texts, headline, links, addresses of what it loads; raises where elements do not nest."""

    VOID = ("meta", "link", "img", "br", "path", "use", "rect", "stop")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.headline, self.loaded, self.links, self.ids = "", list[str](), list[str](), list[str]()
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open, self.open

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(str(value))
            elif key == "href" and tag == "a":
                self.links.append(str(value))
            elif key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.loaded.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        text = data.replace("\N{NO-BREAK SPACE}", " ")
        if "style" not in self.open:
            self.texts.append(text)
        if "h1" in self.open:
            self.headline += text

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_headline_says_what_happened(run: Path) -> None:
    page = Page(write_report(run))
    assert page.headline == (
        "JPEG size fell 31 % (1.65 → 1.14 kB) in 3 min 12 s; the judge still recognises 98.1 % of the animals (98.4 % before)."
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
    assert "the judge now recognises only 41.0 % of the animals (98.4 % before)" in Page(write_report(run)).headline


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
        "Judge: animal recognised", "Diversity", "Inside the updates", "1.65 ± 0.03 kB", "−31 %", "−0.3 points", "431 kB",
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
    with pytest.raises(RunDirectoryError, match=r"report\.html"):
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


@pytest.mark.parametrize("columns", [0, 11])
def test_columns_out_of_range(run: Path, tmp_path: Path, columns: int) -> None:
    with pytest.raises(ValueError, match="columns="):
        before_after_picture(run, tmp_path / "picture.png", columns=columns)


def test_picture_that_cannot_be_written_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="choose another path"):
        before_after_picture(run, tmp_path / "no folder" / "picture.png")


def write_study(run: Path) -> dict[str, Any]:
    """Write what `rlcm eval` leaves: two sets, base and tuned at three numbers of steps, one reward held out."""
    results = [
        {
            "model": model, "set": group, "steps": steps, "images": 24, "images_per_second": 400 / steps,
            "rewards": {"jpeg": {"mean": -1.5 + 0.1 * steps, "ci95": 0.02}, "beauty": {"mean": 5.0, "ci95": 0.1}},
            "judge": {"animal": {"mean": 0.99, "ci95": 0.01}},
        }
        for model in ("base", "tuned") for group in ("train", "a <b> & c") for steps in (1, 2, 4)
    ]  # fmt: skip
    found: dict[str, Any] = {
        "own_steps": 4, "machine": "a laptop",
        "rewards": [
            {"label": "jpeg", "trained": True, "display": {"label": "JPEG size", "unit": "kB", "better": "lower"}},
            {"label": "beauty", "trained": False, "display": None},
        ],
        "sets": [
            {"name": "train", "kind": "train", "prompts": 6, "trained": 6},
            {"name": "a <b> & c", "kind": "held-out", "prompts": 6, "trained": 2},
        ],
        "results": results,
        "pictures": [
            {"file": "pictures/tuned-1.png", "model": "tuned", "set": "train", "steps": [1, 2, 4], "prompts": PROMPTS[:2]},
            {"file": "pictures/gone.png", "model": "base", "set": "train", "steps": [1, 2, 4], "prompts": PROMPTS[:2]},
        ],
    }  # fmt: skip
    (run / "evaluation/pictures").mkdir(parents=True)
    (run / "evaluation/eval.json").write_text(json.dumps(found))
    Image.new("RGB", (40, 72), "green").save(run / "evaluation/pictures/tuned-1.png")
    return found


def test_a_study_of_other_weights_is_left_out(run: Path) -> None:
    study = write_study(run) | {"round": 10}
    (run / "evaluation/eval.json").write_text(json.dumps(study))
    looks = json.loads((run / "eval.json").read_text())
    for final, shown in ((10, True), (20, False)):
        (run / "eval.json").write_text(json.dumps(looks | {"final_round": final}))
        page = Page(write_report(run))
        assert ("How many steps it needs" in page.text) is shown
        assert ("is of the weights of round 10, and final/ has those of round 20" in page.text) is not shown


def test_a_study_is_shown(run: Path) -> None:
    write_study(run)
    page = Page(write_report(run))
    for words in (
        "How many steps it needs", "Trained with 4 steps. a laptop", "JPEG size against steps", "JPEG size against speed",
        "train: 6 prompts, 24 images each", "a <b> & c: held-out, 6 prompts, 24 images each, 2 of the prompts were trained on",
        "beauty, held out", "JPEG size, kB", "1.10 ± 0.02", "99.0 ± 1.0", "Held out: not trained on.",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.source.count("a row for each number of steps: 1, 2, 4") == 1  # the other picture is not there
    assert all((run / link).exists() for link in page.links)
    assert "evaluation/eval.json" in page.links
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith(("data:", "#")) for address in page.loaded)


@pytest.mark.parametrize(("display", "better"), [(None, "lower"), ({"label": "size", "better": "lower"}, "higher")])
def test_a_study_knows_the_penalties_of_the_run(run: Path, display: dict[str, str] | None, better: str) -> None:
    with open(run / "config.yaml", "a") as file:
        file.write("rewards: [{name: jpeg, label: jpeg, weight: -1}, {name: beauty, label: beauty, weight: -1}]\n")
    study = write_study(run)
    study["rewards"][0]["display"] = display
    (run / "evaluation/eval.json").write_text(json.dumps(study))
    jpeg, beauty = rewards_of(read_run(run).study)
    assert y_label(jpeg).endswith(f"{better} is better")
    assert jpeg["sign"] == (1.0 if display is None else -1.0)
    assert y_label(beauty).endswith("higher is better")  # the study has it as not trained on
    assert y_label(rewards_of(study)[0]).endswith("lower is better" if display else "higher is better")  # weights unknown


@pytest.mark.parametrize(
    "broken",
    [
        {"results": 3}, {"results": [{"steps": "x"}, 5]}, {"pictures": [1, {"file": 3}]}, {"rewards": None, "sets": [None]},
        {"results": [{"model": "base", "set": "s", "steps": 4, "rewards": {"jpeg": {"mean": None}}}]},
    ],
)  # fmt: skip
def test_a_damaged_study_does_no_harm(run: Path, broken: dict[str, Any]) -> None:
    (run / "evaluation/eval.json").write_text(json.dumps(write_study(run) | broken))
    page = Page(write_report(run))
    assert page.headline.startswith("JPEG size fell 31 %")
    assert not re.search(r"\b(nan|inf|none|null)\b", page.text.lower())


def test_best_median_and_worst_of_each_prompt(run: Path) -> None:
    values = [-1.0, -1.2, -1.4, -2.0, -2.2, -2.4]
    write_samples(run, 20, values=[-1.0] * 6)
    for suffix in ("png", "json"):
        (run / f"samples/round-000020.{suffix}").rename(run / f"samples/prompts.{suffix}")
    described = json.loads((run / "samples/prompts.json").read_text())
    described |= {"columns": 3, "prompts": ["a cat"] * 3 + ["a dog"] * 3, "rewards": {"jpeg": values}}
    (run / "samples/prompts.json").write_text(json.dumps(described))
    page = Page(write_report(run))
    assert "Every prompt: best, median, worst" in page.text
    assert re.search(r"best 1.00 kB.*median 1.20 kB.*worst 1.40 kB.*a cat.*best 2.00 kB.*a dog", page.text)


def write_extremes(run: Path, **described: Any) -> None:
    """Write what `rlcm eval` leaves of two prompts: their best, median and worst pictures."""
    write_study(run)
    Image.new("RGB", (60, 48), "green").save(run / "evaluation/pictures/prompts.png")
    found = {"round": 0, "columns": 3, "cell": [24, 20], "prompts": ["a cat"] * 3 + ["a dog"] * 3, "seeds": SEEDS} | described
    (run / "evaluation/pictures/prompts.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("described", "lead", "row"),
    [
        # Of several rewards the pictures are ordered by one, and the run's metric is their sum.
        ({"ordered_by": "beauty", "rewards": {"jpeg": [-1.0] * 6, "beauty": [7.0, 6.0, 5.0] * 2}}, "by beauty.", "7.00"),
        (
            {"ordered_by": "a/b", "display": SIZE, "rewards": {"a/b": [-5, -6, -7] * 2}},
            "by JPEG size (lower is better).",
            "5.00 kB",
        ),
        # The best of a penalty has the least of it.
        ({"ordered_by": "a_b", "rewards": {"a_b": [None] * 3 + [0.7, 0.8, 0.9]}}, "by a b (lower is better).", "0.700"),
        ({"ordered_by": "total", "rewards": {"total": [-7, -8, -9] * 2}}, "by JPEG size (lower is better).", "7.00 kB"),
        ({"rewards": {"jpeg": [-8, -8.5, -9] * 2}}, "by JPEG size (lower is better).", "8.00 kB"),
    ],
)  # fmt: skip
def test_the_best_pictures_are_told_by_what_they_are_ordered_by(run: Path, described: Any, lead: str, row: str) -> None:
    write_extremes(run, **described)
    page = Page(write_report(run))
    assert f"Of the pictures of each prompt on fixed seeds, {lead}" in page.text
    assert f"best {row} median" in re.sub(r" seed \d+", "", page.text)


def test_held_out_rewards_are_in_the_numbers_and_among_the_guards(run: Path) -> None:
    looks = [
        evaluation(n, r) | {"held_out": {"beauty": {"mean": v, "ci95": 0.1}}} for n, r, v in ((0, -1.65, 5.0), (20, -1.1, 4.0))
    ]
    write_evaluations(run, *looks)
    page = Page(write_report(run))
    assert "beauty Held out: measured, not trained on. 5.00 ± 0.10 4.00 ± 0.10 −20 %" in page.text
    assert "Held out: beauty" in page.text
