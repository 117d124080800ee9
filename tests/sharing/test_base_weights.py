"""A run's LoRA on another base model than it was trained on: this is said, once, and of nothing else."""

import json
import logging
import os
import shutil

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import lcm_pipeline, tiny_config

from rlcm.cli import commands as cli
from rlcm.pipelines import noted
from rlcm.pipelines.settings import ModelSettings
from rlcm.runs import digests
from rlcm.sharing import other_base, tuned_lora
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.run_config import run_config
from rlcm.training.trainer import Trainer

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model and a short run on it."""
    folder = tmp_path_factory.mktemp("trained")
    lcm_pipeline().save_pretrained(folder / "model")
    Trainer(tiny_config(folder, model={"path": str(folder / "model")}, prompts=["a cat", "a dog"], name="run")).train()
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """A copy of that folder, with other times of its files."""
    shutil.copytree(trained, tmp_path / "copy", copy_function=shutil.copyfile)
    file = tmp_path / "copy/run/config.yaml"
    file.write_text(file.read_text().replace(str(trained), str(tmp_path / "copy")))
    return tmp_path / "copy"


def replace_weights(place):
    """Put other weights of the same shapes in place of the network's, with the same times."""
    file = place / "model" / UNET
    times = file.stat()
    data = bytearray(file.read_bytes())
    for i in range(len(data) - 4000, len(data), 4):
        data[i] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def said_of(place):
    run = place / "run"
    return other_base(run_config(run).model, run)


def test_the_same_model_is_not_warned_of_wherever_it_lies(trained, place):
    assert (said_of(trained), said_of(place)) == ("", "")
    shutil.move(place / "model", place / "elsewhere")
    assert other_base(ModelSettings(path=str(place / "elsewhere")), place / "run") == ""


@pytest.mark.parametrize("small", [noted.SMALL, 0], ids=["whole", "pieces"])
def test_other_weights_of_the_same_shape_are_named(place, small, monkeypatch):
    monkeypatch.setattr(noted, "SMALL", small)
    if not small:  # as where the files are large
        file = place / "run/depends_on.json"
        found = json.loads(file.read_text())
        file.write_text(json.dumps(found | {"pieces": noted.pieces_of(run_config(place / "run").model)}))
        monkeypatch.setattr(digests, "of_file", lambda file: pytest.fail(f"{file} was read whole"))
    assert said_of(place) == ""
    replace_weights(place)
    assert f"other than then: model.path: {UNET}. The LoRA does something else" in said_of(place)


def test_files_that_are_gone_or_new_are_named(place):
    (place / "model/text_encoder/config.json").write_text("{}")
    (place / "model/scheduler/more.json").write_text("{}")
    assert "model.path: scheduler/more.json, model.path: text_encoder/config.json" in said_of(place)


def test_a_lora_of_the_model_that_was_replaced_is_named(tmp_path, place):
    lora = tmp_path / "style.safetensors"
    lora.write_bytes(b"one")
    model = ModelSettings(path=str(place / "model"), loras=[{"path": str(lora)}])
    pieces = noted.pieces_of(model)
    assert noted.changed_since(model, {}, pieces) == []
    lora.write_bytes(b"two")
    assert noted.changed_since(model, {}, pieces) == ["model.loras.0: style.safetensors"]
    assert noted.changed_since(model, {}, {}) == []  # a run of an earlier version


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"contents": 3}', '{"contents": {"model.path": "loaded 3"}}', '{"contents": {"model.path: x": 1'],
)  # fmt: skip
def test_where_nothing_is_known_nothing_is_said(place, text):
    (place / "run/depends_on.json").unlink()
    if text is not None:
        (place / "run/depends_on.json").write_text(text)
    replace_weights(place)
    assert said_of(place) == ""


def test_it_is_said_once(place, caplog):
    replace_weights(place)
    config = run_config(place / "run")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert tuned_lora(config, place / "run/final" / WEIGHTS_NAME)
    assert caplog.text.count("is not the one that the run was trained on") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "{}", "--prompt", "a cat", "--n", "1", "-o", "{}/../a.png"],
        ["export", "{}", "--format", "merged", "-o", "{}/../merged"],
        ["push", "{}", "me/x", "--dry-run", "-o", "{}/../hub"],
    ],
    ids=lambda words: words[0],
)
def test_commands_warn_and_go_on(place, words, caplog):
    replace_weights(place)
    with caplog.at_level(logging.WARNING):
        found = CliRunner().invoke(cli.main, [word.format(place / "run") for word in words])
    assert found.exit_code == 0, found.output
    assert caplog.text.count("is not the one that the run was trained on") == 1


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 300), at=st.integers(0, 299))
def test_of_a_small_file_every_byte_counts(tmp_path_factory, size, at):
    file = tmp_path_factory.mktemp("pieces") / "x"
    data = bytearray(size)
    file.write_bytes(data)
    before = digests.of_pieces(file)
    data[at % size] ^= 1
    file.write_bytes(data)
    assert digests.of_pieces(file) != before


def test_of_a_large_file_its_beginning_its_end_and_its_size_count(tmp_path):
    found = set()
    for size, at in ((6_000_000, 0), (6_000_000, 5_999_999), (6_000_000, 3_000_000), (6_000_001, None)):
        data = bytearray(size)
        if at is not None:
            data[at] = 1
        (tmp_path / "x").write_bytes(data)
        found.add(digests.of_pieces(tmp_path / "x"))
    assert len(found) == 4
