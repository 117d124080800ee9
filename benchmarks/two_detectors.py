"""How far the detector that rewards ask and the held-out judge agree, on the base model's pictures and on the demo's.

    python benchmarks/two_detectors.py [--seed 0] [--keep runs/demo-seeds]

Uses the run of `demo_seeds.py` of that seed, and makes it if it is not there. Writes benchmarks/results/two_detectors.json,
docs/detectors.md and docs/images/detectors.png, which shows the first pictures on which they disagree.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks import demo_seeds
from benchmarks.shared import results
from benchmarks.shared.command import parser
from benchmarks.shared.pages import table
from benchmarks.shared.places import DOCS, IMAGES, RESULTS, ROOT
from rlcm.builtin import model_path
from rlcm.builtin.detector import JudgeDetector, RewardDetector
from rlcm.builtin.judging import right
from rlcm.processes.machine import describe_machine
from rlcm.report.drawing import INK, MUTED
from rlcm.report.lettering import font, wrapped
from rlcm.report.words import asked as in_words
from rlcm.rewards.image.pixels import to_uint8
from rlcm.sharing import tuned_pipeline
from rlcm.training.config import load_config

NAME = "two_detectors"
SHOWN = 8
"""Disagreements of a model on the picture."""
TITLES = {"base": "the base model", "tuned": "after the demo"}
SEEN = """
Those on the picture were looked at. They show things that are only half themselves: a pig without eyes, a rabbit that is hardly
there, a penguin without a head, rabbits of which only the ears are clear, a dog that is a shadow. A few are plainly one detector's
fault: three stars, and a cap right of a boat, where two boats can be seen. The demo has no more pictures that only the rewards'
detector takes than the base model. So nothing here says that it learns to fool it; what it does to the grounds, neither of the two
looks at.

The run is one of its own, on a busy machine: as a mean of the kinds of prompts the judge finds 77.0 % right after it, where seed 0 of
[the demo's page](demo.md) has 75.2 %.
"""
"""What is to be seen on the picture; written by hand, for the run of which the figures are committed."""
Answers = tuple[Tensor, Tensor]
"""What the judge says and what the rewards' detector says of the same pictures: booleans [B] each."""


def drawn(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Return what is asked, and the pictures [B, 3, h, w] of it by the base model and by a run, from the same noise."""
    wanted = demo_seeds.asked_for(demo_seeds.SETS["unseen"])
    config = load_config(folder / "config.yaml")
    pipelines = {"base": tuned_pipeline(config, None), "tuned": tuned_pipeline(config, folder)}
    prompts = [entry["prompt"] for entry in wanted]
    return wanted, {name: demo_seeds.draw(one, config, prompts, config.sampler.calls) for name, one in pipelines.items()}


def counted(answers: Answers, wanted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many pictures each finds right, how many only one of them does, and the kinds of prompts of these."""
    judge, detector = answers
    kinds = Counter(wanted[place]["tag"] for place in (judge != detector).nonzero().flatten().tolist())
    return {
        "pictures": len(wanted),
        "judge": int(judge.sum()),
        "detector": int(detector.sum()),
        "only_judge": int((judge & ~detector).sum()),
        "only_detector": int((detector & ~judge).sum()),
        "kinds": kinds,
    }


def sheet(shown: Mapping[str, tuple[Tensor, Answers]], wanted: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Return the first pictures on which they disagree, a row a model, with the prompt and who finds it right."""
    side, gap, margin, left = 132, 16, 24, 172
    small, bold = font(13), font(18, True)
    height = side + 74
    canvas = Image.new("RGB", (left + SHOWN * (side + gap) + margin, len(shown) * height + margin), "white")
    draw = ImageDraw.Draw(canvas)
    for row, (name, (images, (judge, detector))) in enumerate(shown.items()):
        top = margin + row * height
        for line, text in enumerate(TITLES[name].split(" ", 1)):
            draw.text((margin, top + side / 2 - 22 + 22 * line), text, font=bold, fill=INK)
        for column, place in enumerate((judge != detector).nonzero().flatten().tolist()[:SHOWN]):
            x = left + column * (side + gap)
            picture = Image.fromarray(to_uint8(images[place : place + 1])[0]).resize((side, side), Image.Resampling.LANCZOS)
            canvas.paste(picture, (x, top))
            says = "right by the judge" if judge[place] else "right by the detector"
            draw.text((x, top + side + 4), says, font=small, fill=INK)
            for line, text in enumerate(wrapped(wanted[place]["prompt"], small, side)[:3]):
                draw.text((x, top + side + 21 + 16 * line), text, font=small, fill=MUTED)
    return canvas


def page(found: Mapping[str, Any]) -> str:
    """Return the page."""
    rows = [
        [
            TITLES[name],
            *(f"{one[key] / one['pictures']:.1%}" for key in ("judge", "detector")),
            f"{1 - (one['only_judge'] + one['only_detector']) / one['pictures']:.1%}",
            *(str(one[key]) for key in ("only_judge", "only_detector")),
            ", ".join(f"{number} {in_words(tag).removeprefix('right, ')}" for tag, number in one["kinds"].items()),
        ]
        for name, one in found["models"].items()
    ]
    head = [
        "pictures of",
        "right by the judge",
        "right by the rewards' detector",
        "they agree",
        "only the judge",
        "only the detector",
    ]
    pictures = next(iter(found["models"].values()))["pictures"]
    return f"""# The two detectors

The built-in world has two object detectors. Rewards ask the one; the other is the held-out [judge](glossary.md#judge). They differ in
architecture, seed and training pictures. If a training fools the first one, there are pictures that only the first one finds right.
Both look at the same {pictures} pictures of prompts that the demo did not train on, before it and after it (seed {found["seed"]}).
Shares are over the pictures.

{table([*head, "what these were asked for"], rows)}
![The first pictures on which they disagree](images/detectors.png)

{SEEN}
Machine: {found["machine"]}. Command: `python benchmarks/two_detectors.py`. The figures are in `benchmarks/results/{NAME}.json`.
"""


def main() -> None:
    """Draw, ask both, and write the page."""
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, default=ROOT / "runs" / "demo-seeds", help="where runs are")
    arguments = options.parse_args()
    demo_seeds.run(demo_seeds.PLAIN, arguments.seed, arguments.keep)
    wanted, images = drawn(arguments.keep / f"seed-{arguments.seed}")
    judge, detector = JudgeDetector.load(model_path("judge")), RewardDetector.load(model_path("detector"))
    answers = {name: (right(judge, some, wanted), right(detector, some, wanted)) for name, some in images.items()}
    models = {name: counted(both, wanted) for name, both in answers.items()}
    found = {"machine": describe_machine(), "seed": arguments.seed, "models": models}
    results.write(RESULTS / f"{NAME}.json", found)
    sheet({name: (images[name], answers[name]) for name in images}, wanted).save(IMAGES / "detectors.png", optimize=True)
    (DOCS / "detectors.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
