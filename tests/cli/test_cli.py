"""The command line: exit codes, one paragraph instead of a traceback, and help that loads nothing heavy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import diffusers
import pytest
import transformers
from click.testing import CliRunner
from junk_runs import place
from PIL import Image
from tiny_runs import lcm_pipeline, tiny_config

from rlcm import __version__
from rlcm.cli import commands as cli
from rlcm.cli.work.train import latest_run
from rlcm.errors import CheckpointError, MissingFileError
from rlcm.training.trainer import Trainer
from rlcm.tuning.saying import quiet


def rlcm(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def in_a_process(*args):
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", *args], capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    lcm_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    """A file with the configuration of a short run."""
    folder = tmp_path_factory.mktemp("config")
    made = tiny_config(folder / "runs", model={"path": str(model)}, rewards=["brightness"], prompts=["a cat", "a dog"])
    (folder / "run.yaml").write_text(made.dump())
    return folder / "run.yaml"


def commands(group=cli.main, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [path for path, command in commands() if not isinstance(command, click.Group)], ids=" ".join)
def test_every_command_has_an_example(path):
    found = rlcm(*path, "--help")
    assert found.exit_code == 0
    assert f"Example:  rlcm {' '.join(path)}" in found.output


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom rlcm.cli import main\n"
        "for args in ([], ['train'], ['sample'], ['builtin', 'train']):\n"
        "    try:\n        main([*args, '--help'])\n    except SystemExit as end:\n        assert end.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\nprint('light')"
    )
    found = in_a_process(code)
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("light\n")
    assert "\nExample:  rlcm train\n" in found.stdout


def test_version_and_no_command():
    assert rlcm("--version").output == f"rlcm, version {__version__}\n"
    assert "\nTrain:\n" in rlcm().output


@pytest.mark.parametrize("args", [["sample", "{}"], ["eval", "{}", "-o", "evaluation"], ["train", "model.path={}"]])
def test_a_single_file_of_weights_says_how_to_make_a_folder_of_it(tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)))
    found = CliRunner().invoke(cli.main, [arg.format(file) for arg in args])
    assert found.exit_code == 2
    assert f"model.path='{file}' is a file; make a folder of it once, by diffusers' from_single_file(...)" in found.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "lora.rnk=4"], r"error: lora.rnk is not a setting; did you mean lora.rank?"),
        (["train", "nowhere.yaml"], "error: config='nowhere.yaml' does not exist"),
        (["train", "run.rounds=0"], "error: run.rounds=0: input should be greater"),
        (["train", "model.path=./nowhere"], "error: model.path='./nowhere' is neither a folder nor a Hub id"),
        (["train", "rewards=[sharpnes]"], "error: rewards: there is no reward 'sharpnes'; did you mean sharpness?"),
        (["train", "prompts=nowhere.txt"], "error: prompts='nowhere.txt' is neither a file nor a built-in set"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "my.yaml", "--resume", "latest"], "leave CONFIG out"),
        (["train", "--nonsense"], "there is no option --nonsense; settings are written without dashes as KEY=VALUE"),
        (["sample", "./nowhere"], "error: model.path='./nowhere' is neither a folder nor a Hub id"),
        (["sample", "--steps", "0"], "Invalid value for '--steps'"),
        (["sample", "-o", "a.txt"], "error: -o 'a.txt' is not a picture's name"),
        (["report", "nowhere"], "nowhere"),
        (["distill", "nowhere.yaml"], "error: config='nowhere.yaml' does not exist"),
        (["nonsense"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_with_code_2_and_one_paragraph(args, message):
    found = rlcm(*args)
    assert found.exit_code == 2
    assert message in found.output
    assert "Traceback" not in found.output


def test_failures_end_with_code_1_and_one_paragraph(config, tmp_path):
    (tmp_path / "config.yaml").write_text(config.read_text())
    (tmp_path / "checkpoint-000002").mkdir()
    found = rlcm("train", "--resume", tmp_path)
    assert found.exit_code == 1
    assert found.output.startswith(f"error: {tmp_path} has no whole checkpoint to go on from")
    assert "Traceback" not in found.output


def test_debug_lets_the_traceback_through(monkeypatch):
    args = ["--debug", "distill", "nowhere.yaml"]
    monkeypatch.setattr(sys, "argv", ["rlcm", *args])
    found = rlcm(*args)
    assert isinstance(found.exception, MissingFileError)
    assert "error: " not in found.output


def test_train_resume_sample_and_report(config, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = rlcm("train", config, "output=runs", "name=first", "run.rounds=1", "optimizer.lr=1e-3")
    assert found.exit_code == 0, found.output
    assert "on 4 fixed images" in found.output
    run = tmp_path / "runs/first"
    assert str(run.relative_to(tmp_path) / "report.html") in found.output

    # A longer run of which only the first round is there goes on; what is no text in its metrics is left out, and so is a neighbour.
    (tmp_path / "runs/loop").symlink_to("loop")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"round": 1, "\xff": 2}\n{"round": 2')
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("rounds: 1", "rounds: 2"))
    found = rlcm("train", "--resume", "latest")
    assert found.exit_code == 0, found.output
    said = " ".join(found.output.split())
    assert "left out: 2 lines of metrics.jsonl that cannot be read (line 2, 3)" in said
    assert "left out: runs/loop: it is a link that leads back to itself" in said
    assert [row["round"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())] == [1, 2]

    (run / "report.html").unlink()
    found = rlcm("report", run)
    assert (found.exit_code, (run / "report.html").is_file()) == (0, True)

    found = rlcm("sample", run, "--prompt", "a cat", "--prompt", "a fox", "--n", "3", "-o", "new/grid.png", "--steps", "2")
    assert found.exit_code == 0, found.output
    assert "6 images of 2 prompts, seeds 0 to 2" in found.output
    assert Image.open("new/grid.png").size == (3 * 192 + 2 * 8 + 32, 2 * (192 + 26) + 8 + 32), "large enough to see"
    found = rlcm("sample", model, "--prompt", "a cat", "-o", "one.jpg", "--seed", str(2**32 + 7))
    assert found.exit_code == 0, found.output
    assert "so seed 4294967303 draws what seed 7 draws" in " ".join(found.output.split())
    assert Image.open("one.jpg").width == 192 + 32


def test_a_check_does_what_the_start_does_before_the_model_is_loaded(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def score(images, prompts):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.setattr("rlcm.training.build.load_pipeline", None)
    found = rlcm("train", config, "rewards=[mine.py:score]", "--check")
    assert found.exit_code == 0, found.output
    said, start = found.output.splitlines()
    assert said == "rollout.branch_schedule=last has no effect: it is for rollout.branches above 1"
    assert start.startswith("this can start: ")
    for change, error in (
        ("rewards=[other.py:score]", "there is no file other.py"),
        ("rewards=[mine.py:scores]", "scores"),
        ("prompts=none.txt", "none.txt"),
        (f"model.path={tmp_path}/nowhere", "nowhere"),
        ("lora.target_modules=[nothing]", "nothing"),
    ):
        found = rlcm("train", config, change, "--check")
        assert (found.exit_code, found.output[:7]) == (2, "error: "), found.output
        assert error in found.output
        assert found.output == rlcm("train", config, change).output  # in the same words
    assert "leave it out to go on with one" in rlcm("train", "--check", "--resume", "latest").output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("typed", "loss"), [([], "ppo_clip"), (["demo"], "reward_backprop")])
def test_the_packages_own_configurations_are_run_by_name_or_without_one(tmp_path, monkeypatch, typed, loss):
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr("rlcm.cli.work.train.Trainer", lambda config, **_: started.append(config) or sys.exit(0))
    for changes in ([], ["seed=3"]):
        assert rlcm("train", *typed, *changes, "--check").output.startswith("this can start")
        assert rlcm("train", *typed, *changes).exit_code == 0
    assert [(config.algorithm.loss, config.prompts, config.seed) for config in started] == [
        (loss, "world", 0),
        (loss, "world", 3),
    ]
    (tmp_path / "demo").write_text("prompts: [a fox]\n")
    found = rlcm("train", "demo")
    assert (found.exit_code, started[-1].prompts) == (0, ("a fox",)), "a file of one's own goes before the package's"


def test_a_run_that_has_not_ended_cannot_be_sampled(config, tmp_path):
    (tmp_path / "config.yaml").write_text(config.read_text())
    found = rlcm("sample", tmp_path)
    assert found.exit_code == 2
    assert "the run has not ended; go on with" in found.output


def test_nothing_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = rlcm("train", "--resume", "latest")
    assert found.exit_code == 1
    assert "there is no run in runs/" in found.output


def test_bugs_are_not_hidden(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(Trainer, "__init__", broken)
    assert isinstance(rlcm("train").exception, ZeroDivisionError)


def test_the_latest_run_is_the_one_that_wrote_last(tmp_path, capsys):
    for name, second in (("a", 300), ("b", 200), ("c", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
        if second:
            (tmp_path / name / "metrics.jsonl").write_text("")
            os.utime(tmp_path / name / "metrics.jsonl", (second, second))
    (tmp_path / "no run").mkdir()
    place(tmp_path / "nowhere", "nowhere")
    assert latest_run(tmp_path) == tmp_path / "a"
    assert "nowhere: it is a link that leads nowhere" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="there is no run in"):
        latest_run(tmp_path / "a")


def test_quiet_silences_the_libraries():
    before = diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()
    try:
        quiet()
        assert diffusers.utils.logging.get_verbosity() == diffusers.utils.logging.ERROR
        assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.ERROR
    finally:
        diffusers.utils.logging.set_verbosity(before[0])
        transformers.utils.logging.set_verbosity(before[1])


def test_prefetch_fetches_the_model_and_all_rewards(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("rewards: [jpeg_compressibility]\nevaluation: {held_out: [sharpness]}\n")
    found = rlcm("rewards", "prefetch", file)
    assert found.exit_code == 0, found.output
    assert found.output.splitlines()[-3:] == [
        "model builtin: loads",
        "jpeg_compressibility: nothing to download",
        "sharpness: nothing to download",
    ]
