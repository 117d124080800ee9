"""A third detector, to choose the demo's settings by: neither the one that rewards ask, nor the held-out judge.

    python benchmarks/referee.py [--work runs/referee]        # eight minutes of one fast thread; goes on where it was

It is trained as the judge is (`rlcm.recipe`), with other widths, another seed and other pictures, and then on what the packaged teacher
spoils. It is no part of the package. What a choice says of the demo stays a claim of the judge's, which no choice has seen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.shared.command import parser
from benchmarks.shared.places import ROOT
from rlcm.builtin import model_path
from rlcm.builtin.detector import Detector
from rlcm.builtin.detector import _Hourglass as Hourglass
from rlcm.builtin.renderer import DEFAULT_FONT
from rlcm.distillation.fit import device
from rlcm.recipe import data, detectors, hard, latents, pack
from rlcm.recipe.stages import BATCH, STAGES

SEED = 5_000_000
"""Of its pictures; no other purpose has it."""
TRAINING_SEEDS = {"judge": 41, "judge_hard": 42}
WORK = ROOT / "runs" / "referee"


class RefereeDetector(Detector):
    """Down to 4x4 cells and up again, narrower than the judge."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Hourglass((20, 40, 60, 80))


def trained(work: Path = WORK) -> RefereeDetector:
    """Return the detector that `main` left in a folder."""
    return RefereeDetector.load(work / "model.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train it: on renders and broken pictures first, then on what the model spoils."""
    options = parser(__doc__)
    options.add_argument("--work", type=Path, default=WORK)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(model_path("teacher"), torch_dtype=torch.float32).to(device())
    spoiler = hard.Spoiler(
        pipeline.vae.eval(), pipeline.unet.eval(), latents.Captions(pipeline.tokenizer, pipeline.text_encoder)
    )
    torch.manual_seed(TRAINING_SEEDS["judge"])
    detector: Detector = RefereeDetector()
    for number, (stage, harder) in enumerate({"judge": None, "judge_hard": spoiler}.items()):
        pictures = data.Pictures(DEFAULT_FONT, SEED + number, held_out=None)
        breaker = detectors.new_breaker(DEFAULT_FONT, SEED + number)
        how = (given.work, STAGES[stage], TRAINING_SEEDS[stage], BATCH[stage])
        detector = detectors.train_detector(stage, detector, pictures, breaker, *how, hard=harder)
    pack.pack_detector(detector, given.work)


if __name__ == "__main__":
    main()
