"""What a model holds, as digests: which files count, and what a commit is."""

import shutil

import pytest
import torch
from tiny_pipelines import schedule
from tiny_runs import lcm_pipeline

from rlcm.pipelines import contents
from rlcm.pipelines.contents import commit_of, model_contents, pipeline_contents, weight_files
from rlcm.pipelines.settings import ModelSettings
from rlcm.runs import digests


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    lcm_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "model")


def test_the_files_that_are_read(copy):
    plain = set(weight_files(copy, None))
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} <= plain
    assert {"scheduler/scheduler_config.json", "vae/config.json"} <= plain
    for name in ("README.md", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (copy / name).write_bytes(b"x")
    assert set(weight_files(copy, None)) == plain
    half = set(weight_files(copy, "fp16"))
    assert half ^ plain == {"unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"}


def test_a_copy_holds_the_same_and_a_changed_file_is_named(model, copy):
    before, after = (model_contents(ModelSettings(path=str(folder))) for folder in (model, copy))
    assert before == after
    (copy / "tokenizer/more.json").write_text("{}")
    found = model_contents(ModelSettings(path=str(copy)))
    assert {key for key in found if before.get(key) != found[key]} == {"model.path", "model.path: tokenizer/more.json"}


def test_loras_count_with_what_they_hold_and_how_they_are_added(tmp_path):
    def of(**lora):
        return model_contents(ModelSettings(loras=[lora]))["model.loras"]

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pytorch_lora_weights.safetensors").write_bytes(b"1")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert of(path=one) == of(path=two)
    assert of(path=one) != of(path=one, scale=0.5)
    before = of(path=two)
    (tmp_path / "two/pytorch_lora_weights.safetensors").write_bytes(b"2")
    assert of(path=two) != before


def test_a_loaded_pipeline_is_its_weights_and_its_scheduler():
    one, other = lcm_pipeline(), lcm_pipeline()
    assert pipeline_contents(one, ModelSettings()) == pipeline_contents(other, ModelSettings())
    other.scheduler = type(other.scheduler)(**{**schedule(clip_sample=False), "beta_end": 0.5})
    assert pipeline_contents(one, ModelSettings()) != pipeline_contents(other, ModelSettings())
    other = lcm_pipeline()
    with torch.no_grad():
        next(other.text_encoder.parameters()).view(-1)[-1] += 1e-6
    assert pipeline_contents(one, ModelSettings()) != pipeline_contents(other, ModelSettings())


def test_the_commit_of_a_model_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(contents.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(contents, "hf_hub_download", lambda *args, **named: (_ for _ in ()).throw(OSError("no network")))
    assert commit_of("me/model", "model_index.json", "f" * 40, True) == "f" * 40
    assert commit_of("me/model", "model_index.json", None, True) is None
    refs = tmp_path / "models--me--model/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    (refs / "v1").write_text("b" * 40)
    assert commit_of("me/model", "model_index.json", None, True) == "a" * 40
    found = model_contents(ModelSettings(path="me/model", revision="v1"))
    assert found["model.path"] == f"commit {'b' * 40}"


def test_digests(tmp_path):
    data = bytes(range(256)) * 40_000  # more than a piece
    (tmp_path / "file").write_bytes(data)
    assert digests.of_file(tmp_path / "file") == digests.of_bytes(data)
    assert digests.of_value({"b": 1, "a": 2}) == digests.of_value({"a": 2, "b": 1}) != digests.of_value({"a": 2, "b": 2})
    eye = torch.eye(3)
    assert digests.of_tensors([("x", eye)]) == digests.of_tensors([("x", eye.t())])  # whatever lies how in memory
    assert digests.of_tensors([("x", eye)]) != digests.of_tensors([("x", eye.half())])
    assert digests.of_tensors([("x", torch.zeros(0, 3)), ("y", torch.tensor(1.0))])
