"""Every command that takes prompts reads them alike."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from rlcm.cli import commands as cli

REWARD = """
import torch

def legs(images, prompts, metadata):
    return torch.tensor([float(entry.get("legs", len(prompt))) for prompt, entry in zip(prompts, metadata)])
"""


def rlcm(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, grey in (("a", 0), ("b", 255)):
        Image.new("RGB", (8, 8), (grey,) * 3).save(f"{name}.png")
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


def rows(found):
    assert found.exit_code == 0, found.output
    return [line.split() for line in found.output.splitlines() if ".png" in line]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.JSONL", b'{"prompt": "fox", "legs": 4}\n{"prompt": "bee", "legs": 6}\n'),
        ("p.json", json.dumps([{"prompt": "fox", "legs": 4}, {"prompt": "bee", "legs": 6}], indent=1).encode("utf-16")),
    ],
)
def test_rewards_try_gives_metadata_to_the_reward(folder, name, content):
    (folder / name).write_bytes(content)
    assert rows(rlcm("rewards", "try", "mine.py:legs", "--images", ".", "--prompts", name)) == [
        ["a.png", "fox", "4"],
        ["b.png", "bee", "6"],
    ]


def test_rewards_try_reads_files_sets_and_texts(folder):
    (folder / "p.txt").write_bytes("fox\r\nbees\r\n".encode("utf-8-sig"))
    assert rows(rlcm("rewards", "try", "mine.py:legs", "--images", ".", "--prompts", "p.txt")) == [
        ["a.png", "fox", "3"],
        ["b.png", "bees", "4"],
    ]
    found = rlcm("rewards", "try", "mine.py:legs", "--images", ".", "--prompts", "ox", "--prompts", "cats")
    assert rows(found) == [["a.png", "ox", "2"], ["b.png", "cats", "4"]]
    assert rows(rlcm("rewards", "try", "mine.py:legs", "--images", ".")) == [["a.png", "0"], ["b.png", "0"]]
    found = rlcm("rewards", "try", "brightness", "--images", ".", "--prompts", "world-objects")
    assert (found.exit_code, "20 prompts do not fit 2 pictures" in found.output) == (2, True)


@pytest.mark.parametrize(
    "command",
    [
        ["rewards", "try", "brightness", "--images", ".", "--prompts"],
        ["sample", "builtin", "--prompts"],
        ["eval", "builtin", "--steps", "1", "--rewards", "brightness", "--prompts"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_read_is_said_alike(folder, command):
    (folder / "p.csv").write_text("prompt\na fox\n")
    (folder / "p.json").write_text('{"prompts": ["a fox"]}')
    (folder / "p.txt").write_bytes(b"a\0b")
    for name, said in (
        ("p.csv", ".csv is no kind of file that prompts are read from"),
        ("p.json", "holds an object with prompts"),
        ("p.txt", "NUL bytes"),
        ("nowhere.txt", "is neither a file nor a built-in set"),
    ):
        found = rlcm(*command, name)
        assert (found.exit_code, f"error: --prompts='{name}'" in found.output, said in found.output) == (2, True, True), (
            found.output
        )


def test_sample_says_how_to_give_a_prompt(folder):
    found = rlcm("sample", "builtin", "--prompts", "it's a fox, red")
    assert """A prompt of your own is --prompt 'it'"'"'s a fox, red'.""" in found.output
