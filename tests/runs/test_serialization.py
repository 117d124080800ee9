"""States on disk: what comes back is what went in, and a write that fails leaves the old file."""

import errno
import os
from pathlib import Path

import pytest
import torch

from rlcm.errors import CheckpointError
from rlcm.runs.serialization import load_state, replacing, save_state, write_bytes, write_json


def assert_same(found, wanted):
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for f, w in zip(found, wanted, strict=True):
            assert_same(f, w)
    else:
        assert found == wanted


def test_nests_come_back_whole(tmp_path):
    weight = torch.randn(3, 4)
    state = {
        "numbers": [1, 2.5, 1 / 3, True, None, "text", [], {}, [[torch.tensor(7), [None]]]],
        "tensors": {
            "bfloat16": torch.randn(5).bfloat16(),
            "half": torch.randn(2, 2).half(),
            "double": torch.randn(2, dtype=torch.float64),
            "long": torch.arange(3),
            "bool": torch.tensor([True, False]),
            "none of them": torch.empty(0, 4),
            "scalar": torch.tensor(1.5),
            "view": weight.T,
            "the same twice": [weight, weight],
        },
        "keys": {0: {"step": torch.tensor(3.0)}, 12: None, "__tensor__": "t0", "pairs": [1]},
    }
    save_state(tmp_path / "state.safetensors", state)
    assert_same(load_state(tmp_path / "state.safetensors"), state)
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_state_without_tensors(tmp_path):
    save_state(tmp_path / "s", {"round": 3})
    assert load_state(tmp_path / "s") == {"round": 3}


def test_an_optimiser_goes_on_exactly(tmp_path):
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=1e-2)

    def learn(layer, optimiser, times, first):
        for i in range(times):
            optimiser.zero_grad()
            layer(torch.full((1, 3), float(first + i))).square().sum().backward()
            optimiser.step()

    straight = make()
    learn(*straight, 5, 0)
    halted = make()
    learn(*halted, 2, 0)
    save_state(tmp_path / "s", {"weights": dict(halted[0].named_parameters()), "optimiser": halted[1].state_dict()})
    layer, optimiser = make()
    state = load_state(tmp_path / "s")
    layer.load_state_dict(state["weights"])
    optimiser.load_state_dict(state["optimiser"])
    learn(layer, optimiser, 3, 2)
    assert torch.equal(layer.weight, straight[0].weight)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "other format", "no structure"])
def test_damaged_files_are_refused(tmp_path, damage):
    file = tmp_path / "state.safetensors"
    if damage != "missing":
        save_state(file, {"a": torch.ones(100)})
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-50])
    elif damage == "other format":
        file.write_text("not a state" * 20)
    elif damage == "no structure":
        from safetensors.torch import save_file

        save_file({"a": torch.ones(2)}, str(file))
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_state(file)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, call):
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(file, b"new")
    assert file.read_text() == '{\n  "old": 1\n}\n'
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_a_library_writes_is_replaced_whole_or_not_at_all(tmp_path, there):
    path = tmp_path / "picture.png"
    if there:
        path.write_text("old")
    with pytest.raises(OSError, match="No space"), replacing(path) as temporary:  # noqa: PT012 (what is inside is what fails)
        assert temporary.suffix == ".png"
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"] * there
    assert not there or path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("picture.png", "new")]


def test_a_link_stays_one_and_long_names_fit(tmp_path):
    (tmp_path / "link.png").symlink_to("real.png")
    with replacing(tmp_path / "link.png") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_text() == "new"
    with replacing(tmp_path / f"{'a' * 250}.png") as temporary:
        temporary.write_text("new")
    assert (tmp_path / f"{'a' * 250}.png").read_text() == "new"


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no devices here")
def test_a_device_is_written_to_and_not_replaced(tmp_path, monkeypatch):
    """Root could: /dev/null would be a file from then on."""

    def never(*_):
        raise AssertionError("a device was to be replaced")

    monkeypatch.setattr(os, "replace", never)
    (tmp_path / "link").symlink_to("/dev/null")
    with open(tmp_path / "out", "wb") as out:
        for path in (Path("/dev/null"), Path(f"/dev/fd/{out.fileno()}"), tmp_path / "link"):
            write_bytes(path, b"some")
            with replacing(path) as there:
                assert there == path
    assert (tmp_path / "out").read_bytes() == b"some"
    assert Path("/dev/null").is_char_device()
    if Path("/dev/full").is_char_device():
        with pytest.raises(OSError, match="No space"):
            write_bytes(Path("/dev/full"), b"some")
