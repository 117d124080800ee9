"""One rule for paths, and commands that a shell reads as they were meant."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcm.errors import ConfigError
from rlcm.paths import command, existing, local, shown


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory beside an empty home folder."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~", "../home"),
        ("~/runs/", "../home/runs"),
        ("~root", "/root"),
        ("runs", "runs"),
        ("./runs/", "runs"),
        ("./~runs", "~runs"),
        ("my runs/ünï 'x' \"y\"", "my runs/ünï 'x' \"y\""),
        ("-runs", "-runs"),
        ("$5", "$5"),
        ("a=b", "a=b"),
    ],
)
def test_what_a_path_means(here, typed, meant):
    assert os.path.normpath(local(typed, "output").absolute()) == os.path.normpath(here / meant)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "~no-such-user/runs",
            r"output='~no-such-user/runs': there is no user 'no-such-user'.*write \./~no-such-user/runs for",
        ),
        ("$HOME/runs", r"the environment variable \$HOME is not read here; write the path itself, or ~"),
        ("runs/${USER}", r"the environment variable \$\{USER\} is not read"),
        ("a\0b", "is not a path"),
        ("a\udcff", "is not a path"),
        ("x" * 300, "is longer than 255 bytes"),
        ("x/" * 3000, "all of it than 4095"),
    ],
)
def test_what_is_no_path(here, typed, message):
    with pytest.raises(ConfigError, match=message):
        local(typed, "output")


def test_the_remedies_of_refused_paths_work(here):
    assert local("./~no-such-user/runs", "output").parts == ("~no-such-user", "runs")
    (here / "$HOME").mkdir()
    assert existing("$HOME", "output") == here / "$HOME"  # a folder of that very name


def test_a_folder_that_is_there_may_be_named_like_a_variable(here):
    (here / "price in $USD").mkdir()
    for typed in (here / "price in $USD" / "runs", "price in $USD/runs/mine", "./price in $USD/../runs"):
        assert local(typed, "output") == Path(typed)
    with pytest.raises(ConfigError, match=r"the environment variable \$USER is not read here"):
        local("price in $USD/$USER", "output")


def test_a_name_is_a_path_where_there_is_something_of_that_name(here):
    assert existing("models/lcm", "model.path") is None
    (here / "models/lcm").mkdir(parents=True)
    assert existing("models/lcm", "model.path") == existing("./models/lcm/", "model.path") == here / "models/lcm"
    assert existing("a fox", "prompts") is None
    assert existing("", "prompts") is None
    assert existing("price $USD/kg", "prompts") is existing("~5 foxes", "prompts") is None
    assert existing("~", "RUN") == here.parent / "home"
    assert existing("long" * 2000, "prompts") is None


def test_a_link_is_not_resolved_and_leads_up_where_it_leads(here):
    (here / "far/away").mkdir(parents=True)
    (here / "far/file").write_text("")
    (here / "link").symlink_to(here / "far/away")
    found = existing("link/../file", "prompts")
    assert found is not None
    assert found.resolve() == here / "far/file"


def test_commands_name_what_is_below_the_working_directory_briefly(here):
    assert command("rlcm", "sample", here / "runs/demo", "--n", "8") == "rlcm sample runs/demo --n 8"
    assert command("rlcm", "sample", here.parent / "my runs") == f"rlcm sample '{here.parent}/my runs'"
    assert (shown(Path("-x")), shown(here / "~x")) == ("./-x", "./~x")


def test_a_shell_reads_a_command_as_it_was_meant(here):
    words = ["a b", "it's", 'say "x"', "$HOME", "*", "ü", "a\nb", "\\", "`ls`", "name=x y"]
    found = subprocess.run(["sh", "-c", command("printf", "%s\\0", *words)], capture_output=True, text=True, check=True)
    assert found.stdout.split("\0")[:-1] == words


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=50)
@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_shown_path_is_read_as_the_same_path(names):
    path = Path.cwd().joinpath(*names)
    words = shlex.split(command("rlcm", path))
    assert words[0] == "rlcm"
    if "$" not in "".join(names):  # a folder with a variable's name has to be there
        assert local(words[1], "RUN").absolute() == path
