"""The config.yaml of a run is read whole or not at all: defaults in place of what was lost would be another run's."""

import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from exported_runs import LCM, finished_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlcm import __version__, load_config
from rlcm.cli import commands as cli
from rlcm.errors import ConfigError
from rlcm.report import write_report
from rlcm.report.reading import read_run
from rlcm.runs.whole_config import is_cut, last_line, written_by
from rlcm.training.beginning import stopped_run
from rlcm.training.config import TrainConfig
from rlcm.training.run_config import run_config
from rlcm.ui.form import start_from

BEFORE = Path(__file__).parents[1] / "data" / "run_before_the_wings"
CONFIG = TrainConfig(name="a", prompts=("a cat", "{not: a mapping}"), seed=7)
TEXT = CONFIG.dump()
LINES = TEXT.splitlines(keepends=True)


@pytest.fixture
def run(tmp_path):
    """The folder of a run of which nothing but its configuration and its metrics is there."""
    (tmp_path / "config.yaml").write_text(TEXT)
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n')
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has ended."""
    return finished_run(tmp_path_factory.mktemp("finished"), *LCM, rank=2, alpha=4).path


def rlcm(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def message_of(run, changes=()):
    with pytest.raises(ConfigError) as caught:
        run_config(run, changes)
    return str(caught.value)


def test_a_whole_one_is_read_and_so_is_one_of_an_earlier_version(run):
    assert run_config(run) == CONFIG
    assert run_config(run, ["run.rounds=3"]).run.rounds == 3
    assert run_config(BEFORE).rollout.branches == 2
    assert (written_by(TEXT), written_by((BEFORE / "config.yaml").read_text())) == (__version__, None)


@pytest.mark.parametrize("kept", range(len(LINES) - 1))
def test_one_that_is_cut_at_any_line_is_refused(run, kept):
    (run / "config.yaml").write_text("".join(LINES[:kept]))
    assert message_of(run).startswith(f"{run}/config.yaml is not whole")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, len(TEXT)))
def test_one_that_is_cut_anywhere_is_refused_or_has_lost_nothing_that_counts(run, length):
    (run / "config.yaml").write_text(TEXT[:length])
    try:
        found = run_config(run)
    except ConfigError:
        return
    assert found.model_copy(update={"run": CONFIG.run}) == CONFIG
    assert found.run.model_copy(update={"timeout_seconds": 600}) == CONFIG.run.model_copy(update={"timeout_seconds": 600})


def test_one_that_is_cut_within_a_line_says_where_a_whole_one_is(run):
    (run / "config.yaml").write_text(TEXT[: TEXT.index("sampler:") + 3])
    assert message_of(run).endswith("\nA run wrote this file whole; put it back from a copy.")


def test_one_of_a_users_own_folder_is_no_runs(tmp_path):
    (tmp_path / "config.yaml").write_text("run.rounds: [3")
    assert "A run wrote" not in message_of(tmp_path)


@pytest.mark.parametrize("setting", ["seed", "rollout.branches", "evaluation.least", "run.timeout_seconds"])
def test_a_line_that_was_taken_out_is_named(run, setting):
    name = setting.rpartition(".")[2]
    (run / "config.yaml").write_text("".join(line for line in LINES if not line.strip().startswith(f"{name}:")))
    # `seed` stands in `evaluation`, too
    message = message_of(run)
    assert setting in message
    assert "rlcm settings" in message


def test_the_old_one_is_refused_where_it_is_cut(tmp_path):
    lines = (BEFORE / "config.yaml").read_text().splitlines(keepends=True)
    for kept in (0, 1, len(lines) // 2, len(lines) - 1):
        (tmp_path / "config.yaml").write_text("".join(lines[:kept]))
        assert "is not whole" in message_of(tmp_path)


def test_a_person_may_edit_it(run):
    edited = TEXT.replace("seed: 7", "seed: 8  # another one").replace("  rounds: 75\n", "  # longer\n  rounds: 90\n")
    for text in (edited, f"# mine\n{edited}\n\n", edited.replace("\n", "\r\n")):
        (run / "config.yaml").write_bytes(text.encode())
        assert (run_config(run).seed, run_config(run).run.rounds) == (8, 90)
    # A tool that rewrites YAML drops comments, and with them the last line.
    (run / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(edited) | {"seed": 9}))
    assert run_config(run).seed == 9
    with_least = CONFIG.model_dump(mode="json")
    with_least["evaluation"]["least"] = {"a": 0.1, "b": 0.2}
    text = yaml.safe_dump(with_least) + last_line(with_least)
    (run / "config.yaml").write_text(text.replace("    b: 0.2\n", ""))
    assert run_config(run).evaluation.least == {"a": 0.1}


def test_all_that_read_a_run_refuse_it(run):
    (run / "config.yaml").write_text("".join(LINES[:20]))
    for read in (
        lambda: stopped_run(run, []),
        lambda: start_from("a", {"a": run}),
        lambda: load_config(run / "config.yaml", ["name=NEW"]),  # a run that is repeated
    ):
        with pytest.raises(ConfigError, match="is not whole"):
            read()


def test_what_is_left_can_be_taken_for_a_configuration_of_ones_own(run, tmp_path_factory):
    text = "".join(LINES[:5])
    (run / "config.yaml").write_text(text)
    assert "copy it out of" in message_of(run)
    own = tmp_path_factory.mktemp("own")
    (own / "config.yaml").write_text(text)  # no run is beside it
    assert load_config(own / "config.yaml").seed == 7
    assert f"is given by its file, {own}/config.yaml" in message_of(own)


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_commands_refuse_a_damaged_run_before_they_do_anything(finished, tmp_path, damage):
    for name in ("config.yaml", "final"):
        (tmp_path / name).symlink_to(finished / name)
    (tmp_path / "config.yaml").unlink()
    text = (finished / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text("" if damage == "empty" else text[: len(text) // 2].rpartition("\n")[0])
    before = sorted(tmp_path.iterdir())
    for words in (
        ["sample", tmp_path],
        ["export", tmp_path, "--format", "diffusers"],
        ["eval", tmp_path, "--steps", "2"],
        ["train", "--resume", tmp_path],
        ["push", tmp_path, "me/x", "--dry-run", "-o", tmp_path / "out"],
    ):
        found = rlcm(*words)
        assert (found.exit_code, "is not whole" in " ".join(found.output.split())) == (2, True), found.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_page_says_that_settings_were_lost(run, caplog):
    assert (read_run(run).config_damaged, read_run(BEFORE).config_damaged) == ("", "")
    (run / "config.yaml").write_text("".join(LINES[:20]))
    with caplog.at_level(logging.WARNING):
        page = write_report(run)
    assert "config.yaml: it was cut short" in caplog.text
    assert "Part of config.yaml" in page.read_text()


@pytest.mark.parametrize("where", ["the last line", "what it depends on"])
def test_a_run_of_a_later_version_says_so_and_where_its_lora_is(finished, tmp_path, where):
    (tmp_path / "final").symlink_to(finished / "final")
    text = (finished / "config.yaml").read_text().replace("rollout:\n", "rollout:\n  speculative: 3\n")
    if where == "the last line":
        text = re.sub(r"written by rlcm \S+:", "written by rlcm 9.1.0:", text)
    else:
        text = re.sub(r"# written by .*\n", "", text)
        (tmp_path / "depends_on.json").write_text(json.dumps({"surroundings": {"rlcm": "9.1.0 (abcdef01)"}}))
    (tmp_path / "config.yaml").write_text(text)
    message = message_of(tmp_path, ["run.rounds=3"])
    assert message.startswith(f"{tmp_path}/config.yaml: rollout.speculative is not a setting")
    assert f"written by rlcm 9.1.0, and this is rlcm {__version__}: install rlcm 9.1.0 or a later version" in message
    assert f"diffusers loads {tmp_path}/final/pytorch_lora_weights.safetensors as it is" in message
    for words in (["sample", tmp_path], ["export", tmp_path, "--format", "diffusers"], ["train", "--resume", tmp_path]):
        found = rlcm(*words)
        assert (found.exit_code, "9.1.0" in found.output) == (2, True), found.output


def test_a_wrong_change_is_no_fault_of_the_file(run):
    message = message_of(run, ["run.roundz=3"])
    assert message.startswith("run.roundz is not a setting")
    assert "config.yaml" not in message


@given(st.text(max_size=200), st.dictionaries(st.text(max_size=8), st.integers() | st.dictionaries(st.text(), st.integers())))
def test_any_text_gets_an_answer(text, values):
    assert is_cut(text, values) in (True, False)
