"""The pictures of docs/first-steps.md, from a run of `make demo`.

    python benchmarks/first_steps.py runs/demo          needs playwright and a Chromium

Takes the first screen of the run's page, and runs the page's own code for plain diffusers, without and with its line for the LoRA.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared.browser import started_browser
from benchmarks.shared.command import parser
from benchmarks.shared.places import DOCS, IMAGES

PAGE = DOCS / "first-steps.md"
PROMPTS = ("three foxes", "a red car", "a star left of an owl", "a red heart and a blue boat")
SIDE, GAP = 180, 8
LOAD = "pipe.load_lora_weights"
FIRST_PICTURE = 'pipe("three foxes"'


def main() -> None:
    """Write both pictures."""
    options = parser(__doc__)
    options.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"), help="a run of `make demo`")
    run = options.parse_args().run
    photograph(run / "report.html", IMAGES / "first-steps-report.png")
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0].replace(
        '"runs/demo/final"', repr(str(run / "final"))
    )
    base = "".join(line for line in code.splitlines(keepends=True) if not line.startswith(LOAD))
    rows = [[drawn(text, prompt) for prompt in PROMPTS] for text in (base, code)]
    for without, tuned in zip(*rows, strict=True):
        assert without.tobytes() != tuned.tobytes(), "the LoRA changes nothing"
    side_by_side(rows).save(IMAGES / "first-steps-diffusers.png")


def photograph(page: Path, picture: Path) -> None:
    """Save the first screen of a page."""
    with started_browser() as browser:
        view = browser.new_page(viewport={"width": 1280, "height": 860})
        view.goto(page.resolve().as_uri())
        view.screenshot(path=picture)


def drawn(code: str, prompt: str) -> Image.Image:
    """Return the picture that the page's code draws for a prompt, from a fixed seed."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/picture.png"
        code = code.replace(FIRST_PICTURE, f"pipe({prompt!r}").replace('"picture.png"', repr(file))
        exec(f"import torch\ntorch.manual_seed(0)\n{code}", {})
        return Image.open(file).convert("RGB")


def side_by_side(rows: list[list[Image.Image]]) -> Image.Image:
    """Return pictures in rows, on white."""
    step = SIDE + GAP
    sheet = Image.new("RGB", (len(rows[0]) * step - GAP, len(rows) * step - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x * step, y * step))
    return sheet


if __name__ == "__main__":
    main()
