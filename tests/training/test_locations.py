"""A run begun with relative paths goes on, is evaluated, drawn with and exported from any folder, and from where it is moved to."""

import os
import shlex
import shutil

import pytest
from click.testing import CliRunner
from tiny_runs import lcm_pipeline, tiny_config

from rlcm.cli import main
from rlcm.errors import ConfigError, MissingFileError
from rlcm.pipelines.described import pipeline_class
from rlcm.pipelines.settings import ModelSettings
from rlcm.rewards import build_rewards
from rlcm.rewards.build import located as located_reward
from rlcm.rewards.settings import RewardSettings
from rlcm.training.config import load_config, parse_settings
from rlcm.training.locations import located

REWARD = """
from pathlib import Path

class Score:
    def __init__(self, weights: Path, note: str = ""):
        self.factor = float(Path(weights).read_text())

    def __call__(self, images, prompts):
        return self.factor * images.mean((1, 2, 3))
"""


def rlcm(*args):
    found = CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with a model, prompts and a reward whose names need care, and a finished run begun in it by relative paths."""
    root = tmp_path_factory.mktemp("hoüse")
    lcm_pipeline().save_pretrained(root / "my models/lcm")
    (root / "it's.txt").write_text("a cat\na dog\n")
    (root / "my rewards.py").write_text(REWARD)
    (root / "factor").write_text("2")
    entry = {"name": "./my rewards.py:Score", "args": {"weights": "factor", "note": "of mine"}}
    config = tiny_config(
        "my runs",
        name="first",
        model={"path": "my models/lcm/"},
        prompts="it's.txt",
        rewards=[entry],
        run={"rounds": 1},
        evaluation={"held_out": [{**entry, "label": "other"}]},
    )
    (root / "run.yaml").write_text(config.dump())
    before = os.getcwd()
    os.chdir(root)
    try:
        said = rlcm("train", "run.yaml")
    finally:
        os.chdir(before)
    return root, said


def test_a_run_names_its_files_by_absolute_paths(house):
    root, _ = house
    config = load_config(root / "my runs/first/config.yaml")
    assert config.output == str(root / "my runs")
    assert config.model.path == str(root / "my models/lcm")
    assert config.prompts == str(root / "it's.txt")
    assert config.rewards[0].name == f"{root / 'my rewards.py'}:Score"
    assert config.rewards[0].label == "Score"
    assert config.rewards[0].args == config.evaluation.held_out[0].args == {"weights": str(root / "factor"), "note": "of mine"}


def test_what_a_training_prints_can_be_pasted(house, monkeypatch, tmp_path):
    root, said = house
    monkeypatch.chdir(root)
    pasted = next(line for line in said.splitlines() if line.startswith("try it")).removeprefix("try it").strip()
    assert pasted == "rlcm sample 'my runs/first' --n 8"
    assert "8 images" in rlcm(*shlex.split(pasted)[1:], "--steps", "1", "-o", tmp_path / "a b.png")
    again = next(line for line in said.replace("\n", " ").split(": ") if line.startswith("rlcm train --resume"))
    assert again.startswith("rlcm train --resume 'my runs/first'")


def test_it_goes_on_from_another_folder_and_from_where_it_was_moved_to(house, monkeypatch, tmp_path):
    root, _ = house
    (tmp_path / "else where").mkdir()
    monkeypatch.chdir(tmp_path / "else where")
    shutil.copytree(root / "my runs/first", tmp_path / "moved-run")
    rlcm("sample", root / "my runs/first", "--steps", "1", "-o", "picture.png")
    rlcm("eval", root / "my runs/first", "--steps", "1", "--n", "1", "--limit", "1", "--no-base")
    rlcm("train", "--resume", "../moved-run", "run.rounds=2")
    rlcm("export", "../moved-run", "--format", "kohya")
    rlcm("compare", root / "my runs/first", "../moved-run")
    assert not (tmp_path / "else where/my runs").exists()
    assert len((tmp_path / "moved-run/metrics.jsonl").read_text().splitlines()) == 2


def test_what_is_not_a_file_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("animals", "builtin", "sharpness", "jpeg.py"):
        (tmp_path / name).mkdir()
    typed = {
        "model": {"path": "builtin", "loras": [{"path": "latent-consistency/lcm-lora-sdv1-5"}]},
        "prompts": "animals",
        "rewards": ["sharpness", "http://a.py:8000", "a.b:c", "nowhere.py:f"],
        "evaluation": {"prompts": ["~/a"], "held_out": ["brightness"]},
    }
    config = parse_settings(type(tiny_config("x")), typed)
    found = located(config)
    assert found == config.model_copy(update={"output": str(tmp_path / "runs")})
    assert located(found) == found


def test_home_is_home_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "r.py").write_text("def f(images, prompts): return images.mean((1, 2, 3))\n")
    typed = {
        "output": "~/runs",
        "model": {"path": "~/m", "loras": [{"path": "~/m"}]},
        "prompts": "~/p.txt",
        "rewards": ["~/r.py:f"],
        "evaluation": {"prompts": "~/p.txt", "held_out": ["~/r.py:f"]},
    }
    found = located(parse_settings(type(tiny_config("x")), typed))
    assert (found.output, found.model.path, found.prompts) == tuple(str(tmp_path / name) for name in ("runs", "m", "p.txt"))
    assert found.model.loras[0].path == str(tmp_path / "m")
    assert found.rewards[0].name == found.evaluation.held_out[0].name == f"{tmp_path}/r.py:f"
    assert found.evaluation.prompts == str(tmp_path / "p.txt")
    assert build_rewards(parse_settings(type(found), typed).rewards).parts[0].label == "f"


def test_arguments_of_rewards_that_are_declared_to_be_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").mkdir()
    entry = RewardSettings(name="alignment", args={"path": "clip", "dtype": "float32"})
    assert located_reward(entry).args == {"path": str(tmp_path / "clip"), "dtype": "float32"}
    (tmp_path / "gpt").mkdir()
    served = RewardSettings(name="vlm_yes", args={"model": "gpt", "endpoint": "http://localhost:1/v1"})
    assert located_reward(served).args["model"] == "gpt", "the name of a model over there"
    here = RewardSettings(name="vlm_yes", args={"model": "gpt"})
    assert located_reward(here).args["model"] == str(tmp_path / "gpt")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models/sd_lcm", r"is no folder in the working directory and cannot be had from the Hugging Face Hub .* For a folder"),
        ("./models/sd_lcm", "is neither a folder nor a Hub id"),
        ("../sd_lcm", "is neither a folder nor a Hub id"),
        ("~/sd_lcm", "is neither a folder nor a Hub id"),
        ("my/models/sd_lcm", "is neither a folder nor a Hub id"),
        ("models/sd_lcm/", "is neither a folder nor a Hub id"),
        ("a/weights.safetensors", "is a file; make a folder of it"),
    ],
)
def test_what_looks_like_a_path_never_asks_the_hub(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/weights.safetensors").write_bytes(b"")
    with pytest.raises(MissingFileError, match=message):
        pipeline_class(ModelSettings(path=path, local_files_only=True))


def test_a_folder_that_cannot_be_meant_is_refused_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, ["train", "output=$NOWHERE/runs"])
    assert found.exit_code == 2
    assert "error: output='$NOWHERE/runs': the environment variable $NOWHERE is not read here" in found.output
    with pytest.raises(ConfigError, match="there is no user"):
        located(tiny_config("~no-such-user/runs"))
    assert list(tmp_path.iterdir()) == []


PATHS = """
from __future__ import annotations
from collections.abc import Mapping, Sequence
from pathlib import Path
import pathlib

def r(images, prompts, one: pathlib.Path | None = None, some: Sequence[Path] = (), all: tuple[Path, ...] | None = None,
      named: Mapping[str, pathlib.Path] | None = None, either: Path | dict[str, str] | None = None,
      told: list[tuple[Path, str]] = (), captions: dict[Path, str] | None = None, mixed: list[str | Path] = (), word: str = "",
      pair: tuple[Path, Path] | None = None, either_list: Path | list[Path] = (), quoted: "list[Path]|None" = None):
    return images.mean((1, 2, 3))
"""


def test_arguments_are_paths_where_their_annotation_says_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(PATHS)
    args = {
        "one": "a", "some": ["a", "b"], "all": ["a", ""], "named": {"x": "a"},
        "either": {"mode": "fast"}, "told": [["a.png", "a fox"]], "captions": {"a.png": "a fox"}, "mixed": ["org/model"], "word": "a",
        "pair": ["a", "b"], "either_list": ["a"], "quoted": ["b"],
    }  # fmt: skip
    found = located_reward(RewardSettings(name="r.py:r", args=args)).args
    here = f"{tmp_path}/"
    absolute = {"one": f"{here}a", "some": [f"{here}a", f"{here}b"], "all": [f"{here}a", ""], "named": {"x": f"{here}a"}}
    absolute |= {"pair": [f"{here}a", f"{here}b"], "either_list": [f"{here}a"], "quoted": [f"{here}b"]}
    assert found == args | absolute
    assert located_reward(RewardSettings(name="r.py:r", args={"either": "a", "word": "b"})).args == {
        "either": f"{here}a",
        "word": "b",
    }
