"""The examples run as they are, with few rounds and pictures by the options they show."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "tune_your_own_reward.ipynb"
SCRIPTS = {
    "own_reward": r"blueness -?\d\.\d{3} -> -?\d\.\d{3}; look at .*report\.html",
    "several_rewards": r"alignment +\d\.\d{3} -> +\d\.\d{3}\nblueness ",
    "own_model": r"fox\.png: a fox by the tuned model",
    "library": r"round 1: brightness 0\.\d+\nround 2: brightness 0\.\d+\n$",
    "minimal_rlcm": r"round   1: reward -\d\.\d+\nround   2: reward -\d\.\d+\n$",
}


def test_every_script_is_run_here():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_runs(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLES / "own_reward.py", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    output = ["--output", "out"] if '"--output"' in text else []
    monkeypatch.setattr(sys, "argv", [name, "--rounds", "2", "--images", "16", *output])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(SCRIPTS[name], capsys.readouterr().out)


def test_the_notebook_is_clean():
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert len(text) < 500_000
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert not re.search(r'"(/[a-z]+){2,}/|/tmp/|/home/|/root/', text)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (numbers,) = [cell for cell in notebook.cells if cell.source.startswith("ROUNDS =")]
    numbers.source = "ROUNDS = 1\nIMAGES = 16"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs/warm/final/pytorch_lora_weights.safetensors").is_file()
