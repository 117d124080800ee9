"""Run directories written without a training, and the page read back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
        "rewards": {"total": values, "jpeg": values}, "judge": {"right": [True] * 5 + [False], "counting": [None] * 5 + [False]},
    }  # fmt: skip
    (run / f"samples/round-{round_number:06d}.json").write_text(json.dumps(described | changed))


def evaluation(round_number: int, reward: float, judge: float = 0.984) -> dict[str, Any]:
    value = {"mean": reward, "ci95": 0.03}
    return {
        "round": round_number, "name": "tuned" if round_number else "base", "seconds": 9.6 * round_number, "images": 90,
        "steps": 4, "reward": value, "rewards": {"jpeg": value}, "judge": {"right": {"mean": judge, "ci95": 0.01}},
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
