"""The commands' functions, but for the server itself, which has tests of its own."""

import io

import pytest
import torch
from PIL import Image
from rich.console import Console

from rlcm.errors import ConfigError, MissingFileError, UsageError
from rlcm.rewards import BUILT_IN
from rlcm.rewards.commands import list_rewards, parse_rewards, prefetch, try_rewards


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=160)


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "b.png")
    Image.new("RGB", (8, 8), (0, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (16, 4), 102).save(tmp_path / "c.bmp")
    (tmp_path / "notes.txt").write_text("black\nwhite\ngrey\n")
    return tmp_path


def test_list_names_all(console):
    list_rewards(console=console)
    assert all(name in console.file.getvalue() for name in BUILT_IN)


def test_list_describes_one(console):
    list_rewards("brightness", console)
    text = console.file.getvalue()
    assert "mean luma" in text
    assert text.rstrip().endswith("args: target=0.5")


def test_list_describes_a_function_and_a_reward_of_many_arguments(tmp_path, console):
    (tmp_path / "mine.py").write_text("def mine(images, prompts, power=2):\n    return images\n")
    list_rewards(f"{tmp_path}/mine.py:mine", console)
    assert console.file.getvalue().rstrip().endswith("args: power=2")
    pytest.importorskip("httpx")
    list_rewards("vlm_yes", console)
    assert "model, endpoint=None" in console.file.getvalue().replace("\n", " ")


def test_try_prints_a_table(folder, console):
    rewards = ["brightness", "{name: brightness, label: dark, weight: 2, args: {target: 0}}"]
    try_rewards(rewards, folder, ["black", "white", "grey"], console)
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    rows = {line[0]: line[1:] for line in lines}
    assert rows["picture"] == ["prompt", "brightness", "dark", "total"]
    assert rows["a.png"] == ["black", "-0.5", "-0", "-0.5"]
    assert rows["b.png"] == ["white", "-0.5", "-1", "-2.5"]
    assert rows["c.bmp"] == ["grey", "-0.1", "-0.4", "-0.9"]
    assert rows["mean"] == ["-0.3667", "-0.4667", "-1.3"]


def test_try_one_picture(folder, console):
    try_rewards(["brightness"], folder / "a.png", ["any"], console)
    assert "a.png" in console.file.getvalue()
    assert "total" not in console.file.getvalue()


def test_try_mistakes(folder, tmp_path, console):
    with pytest.raises(UsageError, match="2 prompts do not fit 3"):
        try_rewards(["brightness"], folder, ["a", "b"], console)
    with pytest.raises(MissingFileError, match="neither a picture nor a folder"):
        try_rewards(["brightness"], tmp_path / "nowhere", ["a"], console)
    with pytest.raises(UsageError, match=r"notes\.txt is not a picture"):
        try_rewards(["brightness"], folder / "notes.txt", ["a"], console)


@pytest.mark.parametrize("texts", [["{name: x, wieght: 1}"], ["{name: ["], ["a:f", "b:f"], []])
def test_settings_on_the_command_line(texts):
    with pytest.raises(ConfigError, match="cannot be used"):
        parse_rewards(texts)


def test_prefetch_fetches_what_rewards_name(tmp_path, console):
    rewards = parse_rewards(["sharpness", f"{{name: clipscore, args: {{model: '{tmp_path}'}}}}"])
    prefetch(rewards, console)
    text = console.file.getvalue()
    assert "sharpness: nothing to download" in text
    assert f"clipscore: {tmp_path} is at {tmp_path}" in text


class Scorer(torch.nn.Module):
    """Stands for imscore's classes, which fetch more when they are made."""

    fetched: list[str] = []

    @classmethod
    def from_pretrained(cls, path):
        cls.fetched.append(path)
        return cls()


def test_prefetch_makes_what_fetches_more_by_itself(tmp_path, console):
    args = f"{{scorer: '{__name__}:Scorer', model: '{tmp_path}', device: cpu}}"
    prefetch(parse_rewards([f"{{name: imscore, args: {args}}}"]), console)
    assert Scorer.fetched == [str(tmp_path)]
    assert console.file.getvalue().endswith("imscore: loads\n")


def test_names_of_components_pictures_and_prompts_are_shown_as_they_are(tmp_path, console):
    Image.new("RGB", (8, 8)).save(tmp_path / "[bold]a[.png")
    (tmp_path / "own.py").write_text(
        "def odd(images, prompts):\n    return {'[/red]': images.mean((1, 2, 3)), '[link=x]y': images.mean((1, 2, 3))}\n"
    )
    try_rewards([f"{tmp_path}/own.py:odd"], tmp_path, prompts=["[/x] a fox"], console=console)
    for text in ("odd/[/red]", "odd/[link=x]y", "[bold]a[.png", "[/x] a fox"):
        assert text in console.file.getvalue()
