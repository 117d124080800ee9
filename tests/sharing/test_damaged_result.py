"""What lies in a run's `final/` is that run's LoRA, or every command that would use it says what is wrong, before it begins."""

import contextlib
import shutil

import pytest
import torch
from click.testing import CliRunner
from exported_runs import SD, finished_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_spellings import kohya
from safetensors.torch import load_file, save, save_file

from rlcm.cli import commands as cli
from rlcm.errors import MissingFileError, WeightsError
from rlcm.policy.adapter import read_lora
from rlcm.sharing import export_run, formats, tuned, tuned_lora, tuned_pipeline
from rlcm.sharing.push import prepare
from rlcm.studies.evaluation import StudySettings, prompt_sets, study
from rlcm.training.final import WEIGHTS_NAME, tuned_weights
from rlcm.ui.playground import Studio


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run"), *SD, 4, 8, 0.3)


@pytest.fixture
def final(run):
    """The file of the run's LoRA, which is put back afterwards."""
    file = run.path / "final" / WEIGHTS_NAME
    whole = file.read_bytes()
    yield file
    file.write_bytes(whole)


def damages(run, file):
    """Return what may lie there instead, and what is said of it."""
    good = load_file(file)
    down = next(key for key in good if ".lora_A." in key)
    up, layer = down.replace("lora_A", "lora_B"), down.split(".", 1)[1].removesuffix(".lora_A.weight")
    without = {key: tensor for key, tensor in good.items() if layer not in key}
    lora = read_lora(run.config.lora, file)
    return {
        "is empty": b"",
        "cut short": file.read_bytes()[:-3],
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
        "is a pickle": b"PK\x03\x04",
        "holds no weights at all": save({}),
        "is stored as int8, which is no precision": save(good | {up: good[up].to(torch.int8)}),
        "is stored as bool, which is no precision": save({key: tensor.bool() for key, tensor in good.items()}),
        "holds NaN or infinity": save(good | {up: torch.full_like(good[up], torch.inf)}),
        "which no training by rlcm writes": save(kohya(lora)),
        "it holds alpha, which": save(good | {"alpha": torch.ones(1)}),
        "one of its two factors only": save({key: tensor for key, tensor in good.items() if key != up}),
        r"are not of the run's lora\.rank=4": save(
            {k: (t[:2] if ".lora_A." in k else t[:, :2]).contiguous() for k, t in good.items()}
        ),
        rf"has nothing for {layer}": save(without),
        r"is for odd, which the run does not train": save(
            good | {"unet.odd.lora_A.weight": torch.ones(4, 8), "unet.odd.lora_B.weight": torch.ones(8, 4)}
        ),
        "do not fit the model's layer": save(good | {down: torch.ones(4, 5)}),
    }


def test_nothing_but_the_runs_own_lora_is_taken(run, final, monkeypatch, tmp_path):
    monkeypatch.setattr(tuned, "load_pipeline", lambda _: pytest.fail("the model was loaded"))
    monkeypatch.setattr(formats, "load_pipeline", lambda _: pytest.fail("the model was loaded"))
    network = tuned.bare_network(run.config.model)
    monkeypatch.setattr(tuned, "bare_network", lambda _: network)
    groups = prompt_sets(run.config, True, [], 1)
    users = [
        lambda: tuned_pipeline(run.config, run.path, beside=True),
        lambda: study(run.config, run.path, groups, [], StudySettings(), tmp_path / "study"),
        lambda: Studio(run.config, run.path),
        lambda: export_run(run.path, "diffusers", tmp_path / "a.safetensors"),
        lambda: export_run(run.path, "kohya", tmp_path / "b.safetensors"),
        lambda: export_run(run.path, "merged", tmp_path / "merged"),
        lambda: prepare(run.path, "me/it", tmp_path / "hub"),
    ]
    for match, content in damages(run, final).items():
        final.write_bytes(content)
        for use in users:
            with pytest.raises(WeightsError, match=rf"{match}.*rlcm train --resume {run.path}"):
                use()
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_it_without_a_traceback(run, final, tmp_path):
    final.write_bytes(final.read_bytes()[:100])
    done = CliRunner().invoke(cli.main, ["sample", str(run.path), "--prompt", "a cat", "-o", str(tmp_path / "a.png")])
    assert done.exit_code == 2
    assert "damaged or cut short" in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "a.png").exists()


def test_the_runs_own_lora_is_taken(run, final, caplog):
    lora = tuned_lora(run.config, final)
    assert len(lora) > 8
    assert not caplog.messages
    save_file({key: tensor * (".lora_A." in key) for key, tensor in load_file(final).items()}, final)
    assert tuned_lora(run.config, final).keys() == lora.keys()
    assert "changes nothing: its factors are zero" in caplog.text


def test_without_the_model_a_damaged_lora_is_not_published_all_the_same(run, final, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "bare_network", lambda _: (_ for _ in ()).throw(MissingFileError("no model here")))
    assert prepare(run.path, "me/it", tmp_path / "hub").files
    final.write_bytes(b"")
    with pytest.raises(WeightsError, match="is empty"):
        prepare(run.path, "me/it", tmp_path / "hub")


@pytest.mark.parametrize(
    "name", ["checkpoint-12abc", "checkpoint-", "checkpoint-000012x", "checkpoint-٣٣٣٣٣٣", "checkpoint-0000001e9"]
)
def test_folders_that_are_no_checkpoints_do_not_matter(run, tmp_path, name):
    copied = shutil.copytree(run.path, tmp_path / "run")
    (copied / name).mkdir()
    (copied / "final" / WEIGHTS_NAME).unlink()
    with pytest.raises(MissingFileError, match=r"the run has not ended; go on with `rlcm train --resume [^`]*`\.$"):
        tuned_weights(copied)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_byte_that_is_lost_or_changed_is_a_refusal_or_a_number(run, tmp_path, data):
    """A property: whatever happens to the bytes, what is read is a whole LoRA of this run, or a WeightsError."""
    content = bytearray((run.path / "final" / WEIGHTS_NAME).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with contextlib.suppress(WeightsError):
        lora = read_lora(run.config.lora, file)
        assert all(part.change().isfinite().all() for part in lora.values())
        assert len(content) == (run.path / "final" / WEIGHTS_NAME).stat().st_size
