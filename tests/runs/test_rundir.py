"""The run directory: what is written can be read, and every refusal of the system is one clear error."""

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlcm.errors import RunDirectoryError
from rlcm.runs.rundir import RunDirectory, default_name, extremes, grid
from rlcm.training.evaluate import Evaluation


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "runs", "a")


def test_metrics_are_appended_and_cut_back(run):
    for number in (1, 2, 3):
        run.add_metrics({"round": number, "reward": number / 3, "time/sample": 1e-9})
    assert [row["round"] for row in run.metrics()] == [1, 2, 3]
    assert run.metrics()[0]["reward"] == pytest.approx(1 / 3, abs=1e-7)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"round": 4, "rew')  # a crash in the middle of a line
    assert len(run.metrics()) == 3
    before = run.metrics()[:2]
    run.keep_rounds(2)
    assert run.metrics() == before
    run.add_metrics({"round": 3})
    assert [row["round"] for row in run.metrics()] == [1, 2, 3]


def test_a_run_without_metrics(run):
    assert run.metrics() == []


def test_a_folder_with_a_run_in_it_is_refused(run, tmp_path):
    run.write_text("config.yaml", "name: a\n")
    run.add_metrics({"round": 1})
    with pytest.raises(RunDirectoryError, match=r"name='a'.*already holds a run.*--resume"):
        RunDirectory.create(tmp_path / "runs", "a")
    assert RunDirectory.create(tmp_path / "runs", "b").path.is_dir()


RESULTS = [
    "metrics.jsonl",
    "checkpoint-000001/state.safetensors",
    "checkpoint-12abc/x",
    "final/pytorch_lora_weights.safetensors",
]
NO_RESULTS = [
    *("eval.json", "samples/round-000000.png", "samples/prompts.json", "best/pytorch_lora_weights.safetensors"),
    "checkpoint-000000/state.safetensors",
]
FOREIGN = ["notes.txt", "samples/mine.png", "best/README.md", "my_reward.py"]


def put(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("something")


@settings(max_examples=40, deadline=None)
@given(found=st.sets(st.sampled_from(RESULTS + NO_RESULTS + FOREIGN + ["config.yaml"])))
def test_what_has_learnt_nothing_is_taken_over_and_a_result_or_a_foreign_file_never_goes(found):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "foxes"
        for name in found:
            put(folder, name)
        if found & set(RESULTS):
            with pytest.raises(RunDirectoryError, match="already holds a run"):
                RunDirectory.create(Path(place), "foxes", "name: foxes\n")
            gone = set()
        else:
            RunDirectory.create(Path(place), "foxes", "name: foxes\n")
            gone = set(NO_RESULTS)
            assert (folder / "config.yaml").read_text() == "name: foxes\n"
            assert (folder / "config.before-1.yaml").exists() == ("config.yaml" in found)
        assert {name for name in found if not (folder / name).is_file()} == found & gone


def test_an_earlier_configuration_is_kept_once(tmp_path):
    for text in ("lr: 1\n", "lr: 2\n", "lr: 2\n"):
        run = RunDirectory.create(tmp_path, "a", text)
    assert (run.path / "config.before-1.yaml").read_text() == "lr: 1\n"
    assert len(list(run.path.glob("config.*"))) == 2


def test_a_run_that_is_being_started_is_not_taken_over(run, tmp_path):
    held = run.hold()
    with pytest.raises(RunDirectoryError, match="being trained by another process"):
        RunDirectory.create(tmp_path / "runs", "a", "name: a\n")
    held.release()


def test_an_output_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot write .*file.*another folder with output="):
        RunDirectory.create(tmp_path / "file", "a")


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", denied)  # the tests may run as root, who may write everywhere
    with pytest.raises(RunDirectoryError, match="Permission denied"):
        RunDirectory.create(tmp_path / "runs", "a")


@pytest.mark.parametrize("write", [lambda run: run.write_json("a.json", {}), lambda run: run.add_metrics({"round": 1})])
def test_a_folder_that_has_gone_is_one_clear_error(run, write):
    shutil.rmtree(run.path)
    with pytest.raises(RunDirectoryError, match="cannot write"):
        write(run)


def evaluation(count):
    images = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return Evaluation(
        images,
        [f"prompt {i}" for i in range(count)],
        list(range(count)),
        {"total": images.mean((1, 2, 3)), "sharp": torch.full((count,), float("nan"))},
        {"right": (torch.arange(count) % 2 == 0).float(), "counting": torch.tensor([torch.nan, 1.0] * count)[:count]},
        3.0,
    )


def test_samples_are_a_grid_and_what_is_in_it(run):
    seen = evaluation(7)
    run.add_samples(12, seen, 5)
    sheet = np.asarray(Image.open(run.path / "samples/round-000012.png"))
    assert sheet.shape == (2 * 4, 3 * 6, 3)
    cell = torch.from_numpy(sheet[4:8, 6:12].copy()).permute(2, 0, 1) / 255
    assert (cell - seen.images[4]).abs().max() < 0.51 / 255 + 1e-6
    assert (sheet[4:, 12:] == 255).all()  # the empty cell
    described = json.loads((run.path / "samples/round-000012.json").read_text())
    assert (described["round"], described["columns"], described["cell"]) == (12, 3, [4, 6])
    assert described["prompts"] == seen.prompts[:5]
    assert described["seeds"] == [0, 1, 2, 3, 4]
    assert described["rewards"]["total"] == pytest.approx(seen.rewards["total"][:5].tolist(), abs=1e-6)
    assert described["judge"] == {"right": [True, False, True, False, True], "counting": [None, True, None, True, None]}


def test_grid_is_row_by_row():
    images = torch.arange(6).view(6, 1, 1, 1).expand(6, 3, 2, 2) / 255
    sheet = np.asarray(grid(images, 3))[::2, ::2, 0]
    assert sheet.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_default_names_say_the_reward():
    assert default_name("brightness").startswith("brightness-20")


def test_the_best_the_median_and_the_worst_of_each_prompt(run):
    # Prompt a has four images, b three of which one is unscored, c three.
    prompts = ["a", "b", "c", "a", "b", "c", "a", "b", "c", "a"]
    worth = torch.tensor([1.0, 0.0, 5.0, 3.0, float("nan"), 6.0, 2.0, 1.0, 4.0, 0.0])
    assert extremes(prompts, worth) == [(3, 0, 9), (5, 2, 8)]
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 4, 6) / 10
    run.add_extremes("samples/prompts", 7, Evaluation(images, prompts, list(range(10)), {"total": worth}, None, 1.0), worth)
    described = json.loads((run.path / "samples/prompts.json").read_text())
    assert (described["round"], described["columns"], described["cell"]) == (7, 3, [4, 6])
    assert described["prompts"] == ["a"] * 3 + ["c"] * 3
    assert described["seeds"] == [3, 0, 9, 5, 2, 8]
    assert described["rewards"]["total"] == [3, 1, 0, 6, 5, 4]
    sheet = np.asarray(Image.open(run.path / "samples/prompts.png"))
    assert sheet.shape == (8, 18, 3)
    assert sheet[0, ::6, 0].tolist() == [76, 0, 230]


def test_prompts_with_few_images_have_no_extremes(run):
    drawn = Evaluation(torch.zeros(4, 3, 2, 2), ["a", "a", "b", "b"], [1, 2, 3, 4], {"total": torch.zeros(4)}, None, 1.0)
    run.add_extremes("samples/prompts", 1, drawn, drawn.rewards["total"])
    assert not (run.path / "samples/prompts.json").exists()


def test_large_images_are_kept_small(run):
    drawn = Evaluation(torch.zeros(3, 3, 100, 400), ["a"] * 3, [1, 2, 3], {"total": torch.zeros(3)}, None, 1.0)
    run.add_extremes("samples/prompts", 1, drawn, drawn.rewards["total"])
    assert json.loads((run.path / "samples/prompts.json").read_text())["cell"] == [48, 192]
