"""Every option of every command: a number is checked as the setting that it is, a path is read by the one rule, and no value of
any of them ends in a traceback."""

import re
import sys

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rlcm.cli import commands as cli
from rlcm.cli.arguments import LocalPath, Setting
from rlcm.cli.work import sample as sampling
from rlcm.errors import UsageError
from rlcm.recipe import data, measure
from rlcm.rewards.served import server as reward_server
from rlcm.rewards.served.server import ServerSettings
from rlcm.studies.reproduce import work
from rlcm.ui import page

EXTREMES = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e400",
    str(10**12),
    str(2**70),
    "",
    "abc",
    "１２",
    "9" * 5000,
    "1.5",
    "true",
    "0x10",
]
ARGUMENTS = {
    "sample": ["builtin"],
    "eval": ["builtin", "-o", "found"],
    "compare": ["run"],
    "reproduce": ["--only", "curves", "--task", "compressibility", "-o", "reproduced"],
    "export": ["run", "--format", "kohya"],
    "push": ["run", "me/name", "--dry-run"],
    "ui": ["runs"],
    "rewards try": ["brightness", "--images", "picture.png"],
    "rewards serve": ["--rewards", "brightness", "--port", "0"],
    "builtin train": ["--work", "work", "--weights", "weights"],
    "builtin evaluate": ["--work", "work", "--weights", "weights"],
}


def walk(group=cli.main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


OPTIONS = [
    (name, option)
    for name, command in walk()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag and name in ARGUMENTS
]
NUMBERS = [(name, option) for name, option in OPTIONS if isinstance(option.type, (Setting, click.IntRange))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory; the first expensive step of every command ends it, as an error of the user's would."""

    def reached(*_, **__):
        raise UsageError("reached the work")

    folder = tmp_path_factory.mktemp("options")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    (folder / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sampling, "tuned_pipeline", reached)
        patch.setattr(sys.modules["rlcm.studies.evaluation.study"], "tuned_pipeline", reached)
        patch.setattr(work, "train", reached)
        patch.setattr(data, "Pictures", reached)
        patch.setattr(measure, "measure", reached)
        patch.setattr(page, "create_app", reached)
        patch.setattr("torch.set_num_threads", lambda count: None)
        patch.setattr(reward_server, "serve", reached)
        yield folder


def run(name, option, value):
    """Return what comes of a command with one option at a value."""
    return CliRunner().invoke(cli.main, [*name.split(), *ARGUMENTS[name], f"{option.opts[0]}={value}"
                              if option.opts[0].startswith("--") else f"{option.opts[0]}{value}"])  # fmt: skip


def check(name, option, value):
    found = run(name, option, value)
    assert found.exception is None or isinstance(found.exception, SystemExit), (name, option.opts, value, found.exception)
    assert "Traceback" not in found.output
    if found.exit_code:
        error = found.output[found.output.lower().rindex("error: ") :]
        assert len(error.strip().splitlines()) == 1, error


@pytest.mark.parametrize(("name", "option"), NUMBERS, ids=lambda part: part if isinstance(part, str) else part.opts[0])
def test_extreme_numbers_end_in_one_line(place, name, option):
    for value in EXTREMES:
        check(name, option, value)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from(OPTIONS),
    value=st.one_of(
        st.sampled_from([*EXTREMES, "~", "~nobody-here/x", "$HOME/x", "a b", "'", '"', "-", "--", "./-x", "x/", "..", "\\"]),
        st.integers().map(str),
        st.floats().map(str),
        TEXTS,
    ),
)
def test_no_value_of_any_option_ends_in_a_traceback(place, which, value):
    check(*which, value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sample", "--guidance", "nan"], "Invalid value for '--guidance': 'nan': input should be a valid number"),
        (["sample", "--guidance", ".nan"], "Invalid value for '--guidance': nan: input should be a finite number"),
        (["sample", "--guidance", ""], "Invalid value for '--guidance': '': give a value, or leave the option out"),
        (["sample", "--guidance", "-3"], "Invalid value for '--guidance': -3: input should be greater than or equal to 0"),
        (["sample", "--seed", str(2**70)], "Invalid value for '--seed'"),
        (
            ["sample", "--n", str(10**9)],
            "Invalid value for '-n' / '--n': 1000000000: input should be less than or equal to 10000",
        ),
        (["sample", "--steps", "100"], "does not accept num_steps=100"),
        (["eval", "builtin", "--steps", "1,100"], "does not accept num_steps=100"),
        (["reproduce", "--budget", "nan"], "Invalid value for '--budget': 'nan': input should be a valid number"),
        (["reproduce", "--budget", "inf"], "Invalid value for '--budget'"),
        (["reproduce", "--threads", str(10**12)], "Invalid value for '--threads'"),
        (["rewards", "serve", "--rewards", "brightness", "--workers", str(10**12)], "Invalid value for '--workers'"),
    ],
)
def test_an_option_that_is_refused_says_why(place, args, message):
    found = CliRunner().invoke(cli.main, args)
    assert found.exit_code == 2
    assert message in found.output


@pytest.mark.parametrize(
    "args",
    [
        ["sample", "--steps", "50", "--guidance", "0", "--seed", str(2**40), "--n", "100"],
        ["sample", "--guidance", "1e2"],
        ["eval", "builtin", "--seed", "0", "--n", "1000", "--limit", "1000000"],
        ["reproduce", "--budget", "1e5", "--threads", "64"],
    ],
)
def test_large_values_that_are_meant_reach_the_work(place, args):
    found = CliRunner().invoke(cli.main, args)
    assert found.output.endswith("reached the work\n"), found.output


def test_ranges_that_the_command_line_has_itself_are_those_of_the_settings():
    options = {option.name: option.type for option in cli.main.commands["rewards"].commands["serve"].params}
    for name in ("port", "workers"):
        parts = ServerSettings.model_fields[name].metadata
        bounds = {getattr(part, side) for part in parts for side in ("ge", "le") if hasattr(part, side)}
        assert bounds == {options[name].min, options[name].max}


def test_every_path_of_a_command_is_read_by_the_one_rule(place, monkeypatch):
    typed = re.compile(r"output|work|weights|font|images")
    for name, command in walk():
        for option in command.params:
            if isinstance(option, click.Option) and typed.fullmatch(str(option.name)) and "count" not in str(option.name):
                assert isinstance(option.type, (LocalPath, click.IntRange)), (name, option.opts)
    monkeypatch.setenv("HOME", str(place))
    found = CliRunner().invoke(cli.main, ["rewards", "try", "brightness", "--images", "~/picture.png"])
    assert found.exit_code == 0, found.output
    assert "picture.png" in found.output
    found = CliRunner().invoke(cli.main, ["compare", "~no-such-user/run"])
    assert (found.exit_code, "there is no user 'no-such-user'" in found.output) == (2, True)
