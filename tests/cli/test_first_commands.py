"""What somebody types first with a model of each family, from `rlcm doctor` to the Python of the model card, on tiny models."""

import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from shipped_configs import ROOT, TINY
from tiny_pipelines import pixart, schedule

from rlcm.cli import main
from rlcm.pipelines import FAMILIES
from rlcm.sharing.formats import AVAILABLE
from rlcm.training import keeping

SHIPPED = {
    "LatentConsistencyModelPipeline": "lcm-dreamshaper-v7-compressibility",
    "StableDiffusionPipeline": "sd-turbo",
    "StableDiffusionXLPipeline": "sdxl-dmd2-24gb",
    "ConsistencyModelPipeline": "pixel-consistency",
    "SanaSprintPipeline": "sana-sprint-0.6b",
    "FluxPipeline": "flux-schnell-80gb",
    "ZImagePipeline": "z-image-turbo-80gb",
    "Flux2KleinPipeline": "flux2-klein-4b-80gb",
    "StableDiffusion3Pipeline": "sd3.5-large-turbo-80gb",
    "QwenImagePipeline": "qwen-image-lightning-80gb",
    "Krea2Pipeline": "krea-2-turbo-80gb",
    "ErnieImagePipeline": "ernie-image-turbo-80gb",
}
"""The configuration that docs/models.md names for a family; PixArt's is written by hand, from its table of settings."""
OWN = {
    "PixArtAlphaPipeline": lambda: pixart(diffusers.LCMScheduler(**schedule(clip_sample=False))),
    "PixArtSigmaPipeline": lambda: pixart(diffusers.LCMScheduler(**schedule(clip_sample=False)), diffusers.PixArtSigmaPipeline),
}
SMALL = [
    *("model.revision=null", "model.variant=null", "model.loras=[]", "model.precision=fp32", "model.device=cpu"),
    *(
        "rewards=[brightness]",
        "rollout.batch_size=4",
        "rollout.branches=1",
        "rollout.images_per_prompt=2",
        "rollout.sample_batch_size=4",
    ),
    *("algorithm.minibatches=1", "evaluation.images=2", "evaluation.held_out=[]", "run.micro_batch_size=4", "name=first"),
]
"""What makes a shipped configuration one for a model of a few kilobytes, without a network."""


def typed(*words):
    """Type a command; return what it printed, all of it on the way to a good end."""
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 0, (words, result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


def test_every_family_is_here():
    assert {*SHIPPED, *OWN} == set(FAMILIES)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_first_commands(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_pages = kind == "ZImagePipeline"  # they are the same for all models, and their charts take longer than the rest
    if not with_pages:
        monkeypatch.setattr(keeping, "write_report", lambda folder: folder / "report.html")
    made = OWN[kind]() if kind in OWN else TINY[SHIPPED[kind]]()
    assert type(made).__name__ == kind
    made.save_pretrained("model")
    if kind in OWN:
        Path("my.yaml").write_text("sampler: {scheduler: lcm, steps: 4, guidance: 1.0}\n")
    else:
        shutil.copy(ROOT / "configs" / f"{SHIPPED[kind]}.yaml", "my.yaml")
    is_pixel = kind == "ConsistencyModelPipeline"
    prompts, prompt = ("prompts=['207', '250']", "207") if is_pixel else ("prompts=[a red cat, a blue dog]", "a red cat")
    keeps_its_size = kind.startswith(("Latent", "StableDiffusionP", "StableDiffusionX", "Consistency"))
    pixels = 32 if kind.startswith("Sana") else 16
    size = [] if keeps_its_size else [f"model.height={pixels}", f"model.width={pixels}"]
    settings = ["my.yaml", "model.path=model", prompts, *SMALL, *size]

    if with_pages:  # tests/project/test_configs.py has it on the other models
        assert typed("doctor", *settings).endswith("ok\n")
    typed("train", *settings, "--check")
    said = typed("train", *settings, "run.rounds=1")
    assert "round 1/1" in said
    assert "licence: " not in said, "nobody knows whose model is in this folder"
    assert "round 2/2" in typed("train", "--resume", "runs/first", "run.rounds=2")
    typed("sample", "runs/first", "--prompt", prompt, "-o", "tuned")
    (tuned,) = Path("tuned").resolve().glob("*.png")
    with Image.open(tuned) as picture:
        assert min(picture.size) >= 8
    if with_pages:
        typed("eval", "runs/first", "--steps", "2", "--n", "1", "--limit", "1", "--no-base")
        typed("report", "runs/first")
        typed("push", "runs/first", "me/first", "--dry-run")
    for form in AVAILABLE[kind]:
        assert Path(typed("export", "runs/first", "--format", form).split()[-1]).exists()

    # The model card's own words, in the folder that they are for.
    monkeypatch.chdir("runs/first")
    card = Path("final/README.md").read_text(encoding="utf-8")
    torch.manual_seed(0)
    exec(card.split("```python\n")[1].split("```")[0], {})
    with Image.open("picture.png") as picture, Image.open(tuned) as own:
        assert picture.size == own.size
