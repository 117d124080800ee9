"""`rlcm distill` on tiny pipelines: a folder that diffusers loads and samples from, and a second call that goes on."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import schedule, sdxl, stable_diffusion
from tiny_runs import largest_difference, lcm_pipeline

from rlcm.distillation import fit
from rlcm.distillation.distill import CaptionedPictures, DistillConfig, distill, run_distillation
from rlcm.distillation.loss import Distiller
from rlcm.errors import ConfigError, MissingFileError, UsageError
from rlcm.training.config import parse_settings

CAPTIONS = ["a cat", "a dog", "a fox", "two bees"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for index, text in enumerate(CAPTIONS):
        pixels = rng.integers(0, 256, (20 + 4 * index, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    stable_diffusion(diffusers.DDIMScheduler(**schedule())).save_pretrained(folder)
    return folder


def settings(teacher, data, output, **changes):
    return DistillConfig(
        model={"path": str(teacher)},
        data=str(data),
        output=str(output),
        **{"updates": 3, "batch_size": 2, "solver_steps": 10, "lr": 1e-3, **changes},
    )


def sampled(folder, **call):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipeline, pipeline(CAPTIONS[:2], num_inference_steps=2, generator=generators, output_type="pt", **call).images


def assert_is_a_few_step_model(folder, kind):
    pipeline, images = sampled(folder, guidance_scale=3.0)
    assert type(pipeline).__name__ == kind
    assert type(pipeline.scheduler) is diffusers.LCMScheduler
    assert pipeline.scheduler.config.original_inference_steps == 10
    assert pipeline.unet.config.time_cond_proj_dim == 256
    assert images.shape[:2] == (2, 3)
    assert images.isfinite().all()
    assert images.std() > 0
    return pipeline


def test_stable_diffusion_becomes_a_consistency_pipeline(teacher, data, tmp_path):
    folder = distill(settings(teacher, data, tmp_path / "student", first_jump=4))
    assert folder == tmp_path / "student"
    pipeline = assert_is_a_few_step_model(folder, "LatentConsistencyModelPipeline")
    before = diffusers.UNet2DConditionModel.from_pretrained(teacher / "unet").conv_in.weight
    assert 0 < largest_difference(pipeline.unet.conv_in.weight, before) < 1e-2
    assert pipeline.unet.time_embedding.cond_proj.weight.any()
    assert (folder / "work/student.jsonl").is_file()


def test_sdxl_becomes_a_consistency_pipeline(data, tmp_path):
    sdxl(diffusers.DDIMScheduler(**schedule())).save_pretrained(tmp_path / "teacher")
    folder = distill(settings(tmp_path / "teacher", data, tmp_path / "student", updates=2))
    assert_is_a_few_step_model(folder, "StableDiffusionXLPipeline")


def test_an_interrupted_distillation_goes_on(teacher, data, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_EVERY_SECONDS", -1.0)
    straight = distill(settings(teacher, data, tmp_path / "a"))
    real, calls = Distiller.loss, []

    def stopping(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(Distiller, "loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        distill(settings(teacher, data, tmp_path / "b"))
    halted = distill(settings(teacher, data, tmp_path / "b"))
    assert len(calls) == 4  # two updates, the stop, and one more
    weights = [diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").state_dict() for folder in (straight, halted)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    distill(settings(teacher, data, tmp_path / "b"))
    assert len(calls) == 4  # there is nothing left to do


def test_settings_come_from_a_file(teacher, data, tmp_path):
    file = tmp_path / "distill.yaml"
    file.write_text(f"model: {{path: {teacher}}}\ndata: {data}\noutput: {tmp_path / 'student'}\nsolver_steps: 10\n")
    assert run_distillation(str(file), ["updates=1", "batch_size=1"]) == tmp_path / "student"
    with pytest.raises(ConfigError, match="update is not a setting; did you mean updates"):
        run_distillation(str(file), ["update=1"])
    with pytest.raises(ConfigError, match="updates=true: input should be a valid integer"):
        run_distillation(str(file), ["updates=true"])


def test_no_other_pipeline_is_replaced(teacher, data):
    before = (teacher / "model_index.json").read_bytes()
    with pytest.raises(UsageError, match=r"output='.*would replace model_index\.json.*choose another folder with output="):
        distill(settings(teacher, data, teacher))
    assert (teacher / "model_index.json").read_bytes() == before


def test_models_that_cannot_be_distilled(data, tmp_path):
    lcm_pipeline().save_pretrained(tmp_path / "lcm")
    with pytest.raises(ConfigError, match="is a consistency model already"):
        distill(settings(tmp_path / "lcm", data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pictures_are_scaled_and_cropped(data):
    pictures = CaptionedPictures(data)
    assert [text for _, text in pictures.rows] == CAPTIONS
    images, texts = pictures.draw(6, torch.Generator().manual_seed(0), (16, 12))
    assert images.shape == (6, 3, 16, 12)
    assert -1 <= images.min() < -0.3
    assert 0.3 < images.max() <= 1
    assert set(texts) <= set(CAPTIONS)
    again, _ = pictures.draw(6, torch.Generator().manual_seed(0), (16, 12))
    assert torch.equal(images, again)
    exact = pictures.draw(1, torch.Generator().manual_seed(0), (1, 1))[0]
    assert exact.shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (None, MissingFileError, r"has no metadata\.jsonl; write one"),
        ("", ConfigError, "names no pictures"),
        ("{}", ConfigError, "line 1: .*lacks file_name or text"),
        ("[1]", ConfigError, "line 1"),
        ("not json", ConfigError, "line 1"),
        ('{"file_name": "none.png", "text": 3}', ConfigError, "line 1: .*lacks file_name or text"),
        ("\0", ConfigError, "cannot be read: .*NUL bytes"),
        ('{"file_name": "none.png", "text": "a"}', MissingFileError, r"line 1: .*none\.png does not exist"),
    ],
)
def test_data_with_mistakes(tmp_path, lines, error, message):
    if lines is not None:
        (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(error, match=message):
        CaptionedPictures(tmp_path)


def test_captions_of_other_editors_are_cut_at_line_feeds_alone(tmp_path):
    (tmp_path / "a.png").touch()
    lines = ['{"file_name": "a.png", "text": "a\u2028fox\x85"}', "", '{"file_name": "a.png", "text": "ein Häschen"}', ""]
    (tmp_path / "metadata.jsonl").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert [text for _, text in CaptionedPictures(tmp_path).rows] == ["a\u2028fox\x85", "ein Häschen"]


def test_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"a\.png is not a picture that can be read"):
        CaptionedPictures(tmp_path).draw(1, torch.Generator(), (8, 8))


def test_work_goes_on_only_from_what_it_began_with(teacher, data, tmp_path, monkeypatch):
    output = tmp_path / "student"
    distill(settings(teacher, data, output, updates=1))
    for changes, named in (
        ({"lr": 5e-4, "seed": 3}, r"lr=0\.001, not 0\.0005; seed=0, not 3"),
        ({"guidance": (1, 3)}, r"guidance=\[1\.0, 8\.0\], not \[1\.0, 3\.0\]"),
        ({"batch_size": 1}, "batch_size=2, not 1"),
    ):
        with pytest.raises(ConfigError, match=rf"work was begun with {named}\. Go on with what it began with"):
            distill(settings(teacher, data, output, updates=2, **changes))
    others = tmp_path / "others"
    shutil.copytree(data, others)
    (others / "metadata.jsonl").write_text((data / "metadata.jsonl").read_text().replace("two bees", "three bees"))
    with pytest.raises(ConfigError, match="begun with other data"):
        distill(settings(teacher, others, output, updates=2))
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    assert distill(settings(teacher, moved, output, updates=2)) == output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance": (8, 1)}, r"guidance=\[8, 1\] is no range of 0 \.\. 100"),
        ({"guidance": (-1, 2)}, r"guidance=\[-1, 2\] is no range"),
        ({"first_jump": 10}, r"first_jump=10 is as long as the grid of solver_steps=10; use 1 \.\. 9\."),
    ],
)
def test_settings_that_do_not_fit(changes, said):
    given = {"data": "pictures", "output": "student", "solver_steps": 10, **changes}
    with pytest.raises(ConfigError, match=said):
        parse_settings(DistillConfig, given)
