"""The loop of the recipe and the distiller: it fits, averages, and goes on bit for bit after a stop."""

import errno
import json
import os

import pytest
import torch
from torch import nn

from rlcm.distillation import fit as module
from rlcm.distillation.fit import Fit, Muon, fit
from rlcm.errors import CheckpointError, RunDirectoryError, TrainingError
from rlcm.runs.serialization import load_state, save_state


class Model(nn.Module):
    """An embedding, a matrix for Muon, a bias and a frozen layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 8)
        self.wide = nn.Linear(8, 12)
        self.frozen = nn.Linear(12, 1).requires_grad_(False)

    def forward(self, index):
        return self.frozen(self.wide(self.embedding(index)).tanh()).squeeze(-1)


TARGET = torch.tensor([0.3, -0.2, 0.5, 0.0, -0.6])


def task(model, companion=None, stop_at=None):
    calls = []

    def loss(rng, progress):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(progress)
        index = torch.randint(5, (16,), generator=rng)
        if companion is not None:
            with torch.no_grad():
                companion.weight.lerp_(model.wide.weight, 0.1)
        error = model(index) - TARGET[index]
        return {"loss": error.square().mean(), "largest": error.abs().max()}

    return loss, calls


PLAN = Fit(updates=60, lr=0.05, muon_lr=0.01, warmup=5, ema=0.9)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_fits_and_logs(tmp_path, capsys):
    model = Model()
    frozen = model.frozen.weight.clone()
    loss, calls = task(model)
    before = loss(torch.Generator().manual_seed(0), 0.0)["loss"].item()
    fit("stage", model, loss, PLAN, tmp_path, seed=1)
    after = task(model)[0](torch.Generator().manual_seed(0), 0.0)["loss"].item()
    assert after < 0.1 * before
    assert torch.equal(model.frozen.weight, frozen)
    assert calls[1:] == [update / 60 for update in range(60)]
    lines = [json.loads(line) for line in (tmp_path / "stage.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [50, 60]
    assert set(lines[0]) == {"update", "seconds", "loss", "largest", "grad_norm"}
    assert "stage" in capsys.readouterr().out


@pytest.mark.parametrize("muon_lr", [0.0, 0.01])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, muon_lr):
    monkeypatch.setattr(module, "SAVE_EVERY_SECONDS", -1.0)
    plan = Fit(updates=20, lr=0.05, muon_lr=muon_lr, warmup=3, ema=0.9)
    results = []
    for name, stops in (("straight", [None]), ("halted", [7, 5, None])):
        (tmp_path / name).mkdir()
        for stop_at in stops:
            model, companion = Model(), nn.Linear(8, 12).requires_grad_(False)
            companion.load_state_dict(model.wide.state_dict())
            loss, calls = task(model, companion, stop_at)
            try:
                fit("stage", model, loss, plan, tmp_path / name, seed=3, companion=companion)
            except KeyboardInterrupt:
                assert len(calls) == stop_at
        results.append((weights(model), weights(companion)))
    assert len(calls) == 20 - 7 - 5
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_finished_stage_is_not_trained_again(tmp_path):
    models = [Model(), Model()]
    for model in models:
        loss, calls = task(model)
        fit("stage", model, loss, PLAN, tmp_path, seed=1)
    assert calls == []
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_muon_steps_are_of_one_size_in_every_direction():
    parameter = nn.Parameter(torch.zeros(12, 8))
    generator = torch.Generator().manual_seed(0)
    parameter.grad = torch.randn(12, 8, generator=generator) @ torch.diag(torch.logspace(0, -1.5, 8))
    optimiser = Muon([{"params": [parameter]}])
    optimiser.param_groups[0]["lr"] = 1.0
    optimiser.step()
    sizes = torch.linalg.svdvals(parameter.detach()) / (12 / 8) ** 0.5
    assert 0.5 < sizes.min() <= sizes.max() < 1.5
    assert (parameter.detach() * parameter.grad).sum() < 0


def test_a_full_disk_is_said_and_the_work_goes_on(tmp_path, monkeypatch):
    def full(path, state):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fit("stage", Model(), task(Model())[0], Fit(updates=2), tmp_path, seed=1)
    with monkeypatch.context() as disk:
        disk.setattr(module, "save_state", full)
        said = r"cannot write .*stage\.safetensors: No space left on device.*then give the same command again: it goes on"
        with pytest.raises(RunDirectoryError, match=said):
            fit("stage", Model(), task(Model())[0], Fit(updates=4), tmp_path, seed=1)
    fit("stage", Model(), task(Model())[0], Fit(updates=4), tmp_path, seed=1)
    assert load_state(tmp_path / "stage.safetensors")["updates"] == 4


@pytest.mark.parametrize("what", ["shape", "number", "missing", "no state"])
def test_work_of_another_model_is_refused(tmp_path, what):
    fit("stage", Model(), task(Model())[0], Fit(updates=2), tmp_path, seed=1)
    file = tmp_path / "stage.safetensors"
    state = load_state(file)
    if what == "shape":
        state["weights"][0] = torch.ones(1)  # would be stretched over the whole weight
    elif what == "number":
        state["average"] = state["average"][1:]
    elif what == "missing":
        del state["companion"]
    else:
        state = {"round": 3}
    save_state(file, state)
    with pytest.raises(CheckpointError, match=r"is that of another model.*delete it"):
        fit("stage", Model(), task(Model())[0], Fit(updates=4), tmp_path, seed=1)
    file.unlink()
    fit("stage", Model(), task(Model())[0], Fit(updates=4), tmp_path, seed=1)
    assert load_state(file)["updates"] == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_it_and_leaves_the_last_good_weights(tmp_path, monkeypatch, value):
    monkeypatch.setattr(module, "SAVE_EVERY_SECONDS", -1.0)
    model = Model()
    plain, calls = task(model)

    def loss(rng, progress):
        found = plain(rng, progress)
        return found if len(calls) < 4 else found | {"loss": found["loss"] * value}

    with pytest.raises(TrainingError, match=r"update 4 has a loss .* not finite .* saved is of update 3\. Lower lr=0\.05"):
        fit("part", model, loss, PLAN, tmp_path, 0)
    state = load_state(tmp_path / "part.safetensors")
    assert int(state["updates"]) == 3
    assert all(weight.isfinite().all() for weight in state["weights"])


def test_a_checkpoint_that_was_cut_short_names_the_file_to_delete(tmp_path):
    model = Model()
    fit("part", model, task(model)[0], Fit(updates=2), tmp_path, 0)
    file = tmp_path / "part.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=rf"delete {file} to begin the stage again"):
        fit("part", model, task(model)[0], Fit(updates=2), tmp_path, 0)


def test_what_is_done_already_is_said(tmp_path, capsys):
    model = Model()
    fit("part", model, task(model)[0], Fit(updates=2), tmp_path, 0)
    capsys.readouterr()
    fit("part", Model(), task(model)[0], Fit(updates=1), tmp_path, 0)
    assert "2 updates are done already, of 1 that were asked for" in capsys.readouterr().out
