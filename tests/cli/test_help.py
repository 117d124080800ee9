"""Help and shell completion: every command ends its help with one example, and every example works as it is typed.

The examples run in a folder with what they name: runs/demo and the configurations of the repository. Where one would take
minutes or needs a machine's devices, visible words are added to what is typed (ADDED), or the work itself is stood in for and
what it was called with is checked (STOOD_IN).
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from rlcm.cli import commands as cli
from rlcm.cli import completion
from rlcm.training.config import TrainConfig, read_values

ROOT = Path(__file__).parents[2]
JPEG = "rewards=[jpeg_compressibility]"  # which is never the same for all of so few pictures
SHORT = ["run.rounds=1", "rollout.batch_size=8", "evaluation.images=4", "evaluation.every=0"]
ADDED = {
    "train": SHORT,
    "doctor": [
        JPEG,
        "rollout.batch_size=4",
        "rollout.branches=4",
        "sampler.steps=3",
        "algorithm.minibatches=1",
        "evaluation.images=4",
    ],
    "eval": ["--limit", "2", "--n", "1", "--no-base"],
    "reproduce": ["--budget", "0.01", "--images", "8"],
}
"""What is added to examples that would take minutes: fewer rounds, images and prompts."""
STOOD_IN = {
    "rewards serve": "rlcm.rewards.commands.serve_rewards",  # serves until told to stop
    "ui": "rlcm.cli.work.ui.serve_ui",  # the same
    "reproduce": "rlcm.cli.work.studies.reproduce",  # trains for minutes even so
    "distill": "rlcm.distillation.distill.run_distillation",  # trains for minutes
    "builtin train": "rlcm.recipe.main.train_all",  # trains for an hour
    "builtin evaluate": "rlcm.recipe.main.evaluate_all",  # needs the emoji font
}
"""The function that a test replaces, since the whole command does not end by itself within seconds."""


def commands(group=cli.main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


def rlcm(*args):
    return CliRunner().invoke(cli.main, list(map(str, args)), prog_name="rlcm")


def example(name):
    """Return the words of a command's example, which is the last line of its help."""
    lead, _, typed = rlcm(*name.split(), "--help").output.splitlines()[-1].partition(":  ")
    assert lead == "Example"
    return shlex.split(typed)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with configurations, and a short run of the built-in model in runs/demo and in the names of `rlcm compare`."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "my-pictures").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = rlcm("train", "name=demo", JPEG, *SHORT)
        assert found.exit_code == 0, found.output
    for name in ("ddpo-0", "ddpo-1", "rlcm-0", "rlcm-1"):
        shutil.copytree(folder / "runs/demo", folder / "runs" / name)
        config = folder / "runs" / name / "config.yaml"
        method, seed = name.split("-")
        changed = {"name: demo": f"name: {name}", "seed: 0": f"seed: {seed}"} | (
            {"steps: 4": "steps: 5"} if method == "ddpo" else {}
        )
        text = config.read_text()
        for old, new in changed.items():
            assert old in text
            text = text.replace(old, new, 1)
        config.write_text(text)
    return folder


@pytest.mark.parametrize("name", ["", "rewards", "builtin", *commands()])
def test_help_ends_with_one_example(name):
    found = rlcm(*name.split(), "--help")
    assert found.exit_code == 0
    assert found.output.count("Example:") == 1
    words = example(name)
    assert words[: 1 + len(name.split())] == ["rlcm", *name.split()]


@pytest.mark.parametrize("name", commands())
def test_the_example_works_as_typed(name, place, monkeypatch):
    monkeypatch.chdir(place)
    called = []
    if name in STOOD_IN:
        module, _, function = STOOD_IN[name].rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), function, lambda *args, **_: called.append(args))
    words, _, file = " ".join(map(shlex.quote, example(name))).partition(" '>' ")  # the output may go to a file
    found = rlcm(*shlex.split(words)[1:], *ADDED.get(name, ()))
    assert found.exit_code == 0, found.output
    assert found.exception is None
    assert bool(called) == (name in STOOD_IN)
    assert not file or TrainConfig.model_validate(read_values(_written(file, found.output), []))


def _written(name, text):
    Path(name).write_text(text)
    return name


def test_the_group_says_what_there_is():
    output = rlcm("--help").output
    for name in commands():
        assert name.split()[0] in output


@pytest.mark.parametrize(
    ("typed", "incomplete", "offered"),
    [
        ([], "tr", {"train"}),
        (["rewards"], "pre", {"prefetch"}),
        (["train"], "--res", {"--resume"}),
        (["train"], "optimizer.l", {"optimizer.lr=0.00065"}),
        (
            ["train", "configs/builtin.yaml"],
            "model.precision=",
            {f"model.precision={p}" for p in ("auto", "fp32", "fp16", "bf16")},
        ),
        (["doctor", "seed=1"], "sampler.st", {"sampler.steps=4"}),
        (["train", "seed=1"], "nothing", set()),
        (["export", "runs/demo", "--format"], "k", {"kohya"}),
    ],
)
def test_what_tab_offers(typed, incomplete, offered):
    found = ShellComplete(cli.main, {}, "rlcm", "_RLCM_COMPLETE").get_completions(typed, incomplete)
    assert {item.value for item in found} == offered


def test_where_a_configuration_may_stand_files_are_offered():
    (found,) = ShellComplete(cli.main, {}, "rlcm", "_RLCM_COMPLETE").get_completions(["train"], "configs/b")
    assert found.type == "file"


def test_the_list_of_settings_is_that_of_the_configuration():
    listed = list(completion.listed_settings())
    file = Path(completion.__file__).with_name(completion.LIST)
    assert file.read_text().splitlines() == listed, "make it anew: python -m rlcm.cli.completion"
    assert len(listed) == len(set(listed)) > 100
    given = [line for line in listed if not line.endswith("=")]
    for line in given:  # every one that has a value is one that a run takes
        values = read_values(None, [line])
        group = next(iter(values))
        assert group in TrainConfig.model_fields


def test_the_shell_gets_its_script_and_its_answers_without_torch():
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "_RLCM_COMPLETE": "bash_source"}
    code = "import sys\nsys.argv = ['rlcm']\nfrom rlcm.cli import main\n"
    code += "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert found.returncode == 0, found.stderr
    assert "complete -o nosort -F _rlcm_completion rlcm" in found.stdout
    asked = environment | {"_RLCM_COMPLETE": "bash_complete", "COMP_WORDS": "rlcm train lora.r", "COMP_CWORD": "2"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=asked, timeout=60)
    assert found.stdout.splitlines() == ["plain,lora.rank=16"]


def test_the_help_names_every_command_once_with_its_whole_sentence():
    assert sorted(name for part in cli.PARTS.values() for name in part) == sorted(cli.main.commands)
    help_text = CliRunner().invoke(cli.main, ["--help"], terminal_width=80).output
    assert max(map(len, help_text.splitlines())) <= 80
    flat = " ".join(help_text.split())
    for name, command in cli.main.commands.items():
        sentence = " ".join(command.help.partition("\n\n")[0].split())
        assert f" {name} {sentence}" in flat or f" {name} {sentence.partition('. ')[0]}" in flat
