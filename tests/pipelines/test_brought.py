"""What a pipeline that was passed brings: only what no file holds."""

import pytest
import torch
from tiny_runs import lcm_pipeline

from rlcm.pipelines.brought import CHANGED, brought_by, changed_parts


@pytest.fixture
def pipeline(tmp_path):
    made = lcm_pipeline()
    made.save_pretrained(tmp_path / "model")
    return type(made).from_pretrained(tmp_path / "model")


def test_what_lies_in_its_folder_brings_nothing(pipeline):
    assert brought_by(pipeline) == {}
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
    assert brought_by(pipeline) == {CHANGED: part}


def test_another_part_is_seen(pipeline):
    torch.manual_seed(1)
    pipeline.vae = type(pipeline.vae).from_config(pipeline.vae.config)
    assert changed_parts(pipeline) == ["vae"]


def test_files_that_are_gone_or_damaged_are_not_compared(pipeline, tmp_path):
    file = next((tmp_path / "model" / "unet").glob("*.safetensors"))
    file.write_bytes(b"nothing")
    assert changed_parts(pipeline) == []
    file.unlink()
    assert changed_parts(pipeline) == []
