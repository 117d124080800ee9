"""Options with a dash where their hyphens belong: named, and printed as they were meant."""

import shlex

import click
import pytest
from click.testing import CliRunner

from rlcm.cli.commands import main
from rlcm.cli.kinds import Group, WithSettings


@click.group(cls=Group)
def tool():
    """A tool.

    Example:  tool draw
    """


@tool.command(cls=WithSettings)
@click.argument("words", nargs=-1)
@click.option("--prompt", multiple=True)
@click.option("--n", "count", type=int)
@click.option("-o", "--output")
@click.option("--dry-run", is_flag=True)
def draw(words, prompt, count, output, dry_run):
    """Draw.

    Example:  tool draw
    """
    click.echo(repr((words, prompt, count, output, dry_run)))


def said(*words, of=tool, name="tool"):
    found = CliRunner().invoke(of, words, prog_name=name)
    return found.exit_code, found.output


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("draw x –n 8", "draw x --n 8"),
        ("draw x —n=8", "draw x --n=8"),
        ("draw –-dry-run", "draw --dry-run"),
        ("draw —-dry-run x", "draw --dry-run x"),
        ("draw −−dry‑run", "draw --dry-run"),
        ("draw –dry–run –o 'a b'", "draw --dry-run -o 'a b'"),
        ("draw –promt 'a fox'", "draw --prompt 'a fox'"),
        ("draw --prompt –n –n 2", "draw --prompt '–n' --n 2"),
        ("–help", "--help"),
        ("draw –help", "draw --help"),
        ("—help draw –n", "--help draw '–n'"),
    ],
)
def test_a_dash_for_hyphens_is_named_and_the_command_printed(typed, meant):
    code, output = said(*shlex.split(typed))
    assert code == 2
    assert "options begin with hyphens (-); here one has a" in output
    command = output.rpartition("Write: ")[2].strip()
    assert command == f"tool {meant}"
    assert said(*shlex.split(command)[1:])[0] == 0


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["draw", "--prompt", "–n"], "((), ('–n',), None, None, False)"),
        (["draw", "--prompt=–n", "-o", "–o"], "((), ('–n',), None, '–o', False)"),
        (["draw", "– a fox", "–", "a–b", "seed=–1"], "(('– a fox', '–', 'a–b', 'seed=–1'), (), None, None, False)"),
        (["draw", "--", "–n"], "(('–n',), (), None, None, False)"),
    ],
)
def test_texts_that_begin_with_a_dash_are_taken(words, answer):
    assert said(*words) == (0, f"{answer}\n")


def test_a_file_whose_name_begins_with_a_dash_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "–n").touch()
    assert said("draw", "–n")[0] == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train q.yaml –resume runs/x", "train q.yaml --resume runs/x"),
        ("train –-check", "train --check"),
        ("sample runs/x –n 8", "sample runs/x --n 8"),
    ],
)
def test_the_commands_of_the_tool_do_so(typed, meant):
    code, output = said(*typed.split(), of=main, name="rlcm")
    assert code == 2
    assert output.strip().endswith(f"Write: rlcm {meant}")
