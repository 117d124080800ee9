"""What a pipeline that was passed brings: only what no file holds."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import lcm_pipeline

from rlcm.pipelines import ModelSettings
from rlcm.pipelines.brought import CHANGED, brought_by
from rlcm.pipelines.brought import changed_parts as changed

DEFAULT = ModelSettings()


def changed_parts(pipeline):
    return changed(pipeline, DEFAULT)


@pytest.fixture
def pipeline(tmp_path):
    made = lcm_pipeline()
    with torch.no_grad():
        for name, value in made.unet.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.003)  # so small that fp16 rounds by fixed steps
    made.save_pretrained(tmp_path / "model")
    return type(made).from_pretrained(tmp_path / "model")


def test_what_lies_in_its_folder_brings_nothing(pipeline):
    assert brought_by(pipeline, DEFAULT) == {}
    for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float64):  # one after the other, rounded each time
        assert changed_parts(pipeline.to(dtype)) == []
    assert changed_parts(lcm_pipeline()) == [], "it names no folder"


def test_half_precision_on_the_disk_is_no_change(tmp_path):
    made = lcm_pipeline().to(torch.float16)
    made.save_pretrained(tmp_path / "half", variant="fp16")
    loaded = type(made).from_pretrained(tmp_path / "half", variant="fp16", torch_dtype=torch.float32)
    assert changed_parts(loaded) == []
    loaded.save_pretrained(tmp_path / "half")  # beside it, whole
    assert changed_parts(type(made).from_pretrained(tmp_path / "half", variant="fp16")) == []


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_weight_that_was_changed_is_seen(pipeline, part, dtype):
    pipeline.to(dtype)
    with torch.no_grad():
        weight = max(getattr(pipeline, part).parameters(), key=torch.numel)
        weight.view(-1)[3].mul_(1.5).add_(0.1)
    assert brought_by(pipeline, DEFAULT) == {CHANGED: part}


def test_another_part_is_seen(pipeline):
    torch.manual_seed(1)
    pipeline.vae = type(pipeline.vae).from_config(pipeline.vae.config)
    assert changed_parts(pipeline) == ["vae"]


def test_a_part_of_another_class_or_compiled_is_seen(pipeline):
    pipeline.unet = torch.compile(pipeline.unet)
    assert changed_parts(pipeline) == []
    with torch.no_grad():
        next(pipeline.unet.parameters()).add_(0.1)
    pipeline.vae = diffusers.AutoencoderTiny()
    assert changed_parts(pipeline) == ["unet", "vae"]


def test_a_file_of_something_else_hides_nothing(pipeline, tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "model" / "unet" / "other.v2.safetensors")
    with torch.no_grad():
        next(pipeline.unet.parameters()).fill_(torch.nan)
    assert changed_parts(pipeline) == ["unet"]


def test_files_that_are_gone_or_damaged_are_not_compared(pipeline, tmp_path):
    file = next((tmp_path / "model" / "unet").glob("*.safetensors"))
    file.write_bytes(b"nothing")
    assert changed_parts(pipeline) == []
    file.unlink()
    assert changed_parts(pipeline) == []
