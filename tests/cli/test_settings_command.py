"""`rlcm settings`, and where `rlcm sample` puts its pictures."""

import re
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from rlcm.builtin.vocabulary import unknown_words
from rlcm.cli import completion, main
from rlcm.training.config import TrainConfig, commented_yaml, load_config
from rlcm.training.explaining import names_of


def rlcm(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_all_settings_are_those_of_the_configuration(tmp_path):
    found = rlcm("settings")
    assert found.output == completion.all_settings() == commented_yaml(), "make it anew: python -m rlcm.cli.completion"
    (tmp_path / "c.yaml").write_text(found.output)
    assert load_config(tmp_path / "c.yaml") == TrainConfig()


def test_every_setting_is_found_by_its_name_with_its_default():
    for name in names_of(TrainConfig):
        default, meaning = completion.meaning_of(name)
        value = yaml.safe_load(default)
        own = TrainConfig().model_dump(mode="json")
        for part in name.split("."):
            own = own[part]
        assert value == own or (isinstance(own, float) and float(value) == own), name
        assert meaning, name


def test_settings_about_a_word():
    found = rlcm("settings", "Leash")
    assert found.exit_code == 0
    assert "algorithm.kl_coefficient=0.1" in found.output
    assert [line for line in found.output.splitlines() if re.match(r"\S", line)] == ["algorithm.kl_coefficient=0.1"]
    assert rlcm("settings", "lr").output.startswith("optimizer.lr=")
    missing = rlcm("settings", "xyzzy")
    assert missing.exit_code == 2
    assert "no setting has 'xyzzy'" in missing.output


def test_it_needs_no_torch():
    code = "import sys; sys.argv = ['rlcm', 'settings', 'lr']\nfrom rlcm.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr=0.00065" in done.stdout


def test_a_training_s_help_lists_what_most_people_change():
    text = rlcm("train", "--help").output
    assert "rlcm settings" in text
    for name in ("prompts", "rewards", "run.rounds", "optimizer.lr"):
        assert re.search(rf"(?m)^  {re.escape(name)}=", text), name


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["a fox", "two cats and a red car", "a star left of an owl"], []),
        (["a dragon"], ['"dragon"']),
        (["a Fox on the Moon", "a moon"], ['"on"', '"moon"']),
    ],
)
def test_words_that_the_built_in_model_has_never_read(prompts, words):
    assert unknown_words(prompts) == words


def test_pictures_go_into_a_sheet_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = rlcm("sample", "builtin", "--prompt", "a fox", "--prompt", "a dragon", "-n", "2", "--steps", "1", "-o", "sheet.png")
    assert found.exit_code == 0, found.output
    assert 'does not know "dragon"' in found.output
    assert Image.open("sheet.png").width > 2 * 192
    found = rlcm("sample", "builtin", "--prompt", "a fox", "--prompt", "a/b: c", "-n", "2", "--steps", "1", "-o", "new/folder")
    assert found.exit_code == 0, found.output
    names = sorted(file.name for file in (tmp_path / "new/folder").iterdir())
    assert names == ["a-b-c-seed-0.png", "a-b-c-seed-1.png", "a-fox-seed-0.png", "a-fox-seed-1.png"]
    assert {Image.open(file).size for file in (tmp_path / "new/folder").iterdir()} == {(64, 64)}
    assert rlcm("sample", "builtin", "-o", "").exit_code == 2


def test_a_run_s_own_pictures_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/demo"
    (run / "samples").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("")
    (run / "samples/round-000000.json").write_text("{}")
    (run / "samples/round-000000.png").write_bytes(b"before")
    for place in ("runs/demo/samples/round-000000.png", "runs/demo/samples/new.png", "runs/demo/final/x.png", "runs/demo"):
        found = rlcm("sample", "builtin", "--steps", "1", "--prompt", "a fox", "-o", place)
        assert found.exit_code == 2, place
        assert "holds a run" in found.output
    assert (run / "samples/round-000000.png").read_bytes() == b"before"
    assert rlcm("sample", "builtin", "--steps", "1", "--prompt", "a fox", "-o", "runs/demo/mine.png").exit_code == 0
