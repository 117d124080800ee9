"""A network is loaded with all of its weights, or not at all: libraries give random values to what is missing."""

import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny_pipelines import schedule, stable_diffusion
from transformers import CLIPTextModel

from rlcm.errors import MissingFileError, WeightsError
from rlcm.pipelines import ModelSettings, load_pipeline
from rlcm.runs.weights import load_whole, read_weights

UNET = "diffusion_pytorch_model.safetensors"
NETWORKS = {
    "unet": (diffusers.UNet2DConditionModel, UNET, "conv_in.weight"),
    "vae": (diffusers.AutoencoderKL, UNET, "decoder.conv_in.weight"),
    "text_encoder": (CLIPTextModel, "model.safetensors", "final_layer_norm.weight"),
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd"
    stable_diffusion(diffusers.LCMScheduler(**schedule())).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "sd")


def key_of(tensors, end):
    return next(key for key in tensors if key.endswith(end))


@pytest.mark.parametrize("part", NETWORKS)
def test_what_is_not_whole_is_refused(model, part):
    kind, name, end = NETWORKS[part]
    file = model / part / name
    tensors = load_file(file)
    key = key_of(tensors, end)
    rest = {other: tensor for other, tensor in tensors.items() if other != key}
    cases = {
        rf"lacks weights of its {kind.__name__}, which would be random: .*{end}": rest,
        r"lacks weights of its .* and \d+ more": {key: tensors[key]},
        "its weights are damaged, or are not those of its config": rest | {key: torch.ones(2, 2)},
        r"holds NaN or infinity": rest | {key: tensors[key] / 0},
    }
    assert load_whole(kind, model / part).state_dict().keys()
    for match, changed in cases.items():
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=match):
            load_whole(kind, model / part)
    for content in (save(tensors)[:-9], LFS, b""):
        file.write_bytes(content)
        with pytest.raises((WeightsError, OSError, ValueError)):
            load_whole(kind, model / part)


def test_more_than_the_network_has_places_for(model):
    kind, name, _ = NETWORKS["unet"]
    file = model / "unet" / name
    save_file(load_file(file) | {"odd.weight": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"holds weights that its UNet2DConditionModel has no place for: odd\.weight"):
        load_whole(kind, model / "unet", exact=True)
    assert load_whole(kind, model / "unet").config.sample_size == 8


def test_a_pipeline_with_a_hole_is_refused_in_each_network(model):
    for part, (_, name, end) in NETWORKS.items():
        file = model / part / name
        whole = file.read_bytes()
        tensors = load_file(file)
        save_file(
            {key: tensor for key, tensor in tensors.items() if key != key_of(tensors, end)}, file, metadata={"format": "pt"}
        )
        with pytest.raises(WeightsError, match=rf"{part} lacks weights"):
            load_pipeline(ModelSettings(path=str(model), device="cpu"))
        file.write_bytes(whole)
    config = json.loads((model / "unet" / "config.json").read_text())
    (model / "unet" / "config.json").write_text(json.dumps(config | {"time_cond_proj_dim": 8}))
    with pytest.raises(
        WeightsError, match=r"lacks weights.*cond_proj.*give it the config\.json that its weights were saved with"
    ):
        load_pipeline(ModelSettings(path=str(model), device="cpu"))


def test_legal_neighbours_load(model, saved):
    """A text encoder cut out of a larger model, and a variant that one network has."""
    plain = load_pipeline(ModelSettings(path=str(saved), device="cpu")).unet.state_dict()
    text = model / "text_encoder" / "model.safetensors"
    save_file(load_file(text) | {"vision_model.post_layernorm.weight": torch.ones(4)}, text, metadata={"format": "pt"})
    (model / "unet" / UNET).rename(model / "unet" / UNET.replace(".safe", ".fp16.safe"))
    found = load_pipeline(ModelSettings(path=str(model), device="cpu", variant="fp16")).unet.state_dict()
    assert all(torch.equal(found[key], plain[key]) for key in plain)
    with pytest.raises(MissingFileError, match="cannot be loaded"):
        load_pipeline(ModelSettings(path=str(model), device="cpu", variant="bf16"))


def test_the_reader_of_weights_takes_every_kind_of_number(tmp_path):
    kinds = {"float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "int8", "bool"}
    tensors = {kind: torch.ones(3).to(getattr(torch, kind)) for kind in kinds} | {
        "none": torch.ones(0),
        "one": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"by": "me"})
    found, metadata = read_weights(tmp_path / "a.safetensors")
    assert metadata == {"by": "me"}
    assert {key: (t.dtype, t.shape) for key, t in found.items()} == {key: (t.dtype, t.shape) for key, t in tensors.items()}
    with pytest.raises(MissingFileError, match="is no file"):
        read_weights(tmp_path)
