"""A run on the Hub: the folder that is written, what its card says and does, and the upload to a stand-in for the Hub."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from click.testing import CliRunner
from exported_runs import LCM, SD, finished_run
from hub_server import TOKEN, running_hub
from huggingface_hub import constants
from PIL import Image
from tiny_runs import lcm_pipeline, tiny_config

from rlcm.builtin import DEMO
from rlcm.builtin.vocabulary import known
from rlcm.cli import commands as cli
from rlcm.errors import MissingFileError, UsageError
from rlcm.pipelines.settings import ModelSettings
from rlcm.report import read_run
from rlcm.report.words import headline
from rlcm.runs.own_folder import MARK
from rlcm.sharing.hub_card import card, settings_of
from rlcm.sharing.push import prepare, send
from rlcm.training.config import load_config
from rlcm.training.final import WEIGHTS_NAME, model_card
from rlcm.training.trainer import Trainer
from rlcm.training.usage import local_usage, usage

FILES = {"README.md", WEIGHTS_NAME, "config.yaml", "eval.json", "before-after.png", "curve.png"}
REPO = "me/three-foxes"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    lcm_pipeline().save_pretrained(folder / "model")
    config = tiny_config(folder, model={"path": str(folder / "model")}, prompts=["a cat", "a dog"])
    return Trainer(config).train()


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub, which the client takes for the true one; a token is set."""
    # a session kept from a test that had the Hub offline stays offline; the client before 1.0 forgets it under another name
    (getattr(huggingface_hub, "close_session", None) or huggingface_hub.configure_http_backend)()
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def no_network(monkeypatch):
    """Any connection fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def rlcm(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def card_parts(folder):
    """Return the metadata of a card, its text, and its code."""
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text, re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)


def test_a_dry_run_writes_the_folder_and_asks_no_network(run, tmp_path, no_network, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found = rlcm("push", run, REPO, "--dry-run", "-o", tmp_path / "out", "--base-model", "some/model")
    assert found.exit_code == 0, found.output
    assert f"dry run: nothing was sent to {REPO}" in found.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {MARK}
    own, published = load_config(run / "config.yaml"), load_config(tmp_path / "out/config.yaml")
    assert (published.output, published.model.path) == ("runs", "some/model")
    assert published.model_copy(update={"output": own.output, "model": own.model}) == own
    assert str(run.parent) not in (tmp_path / "out/config.yaml").read_text()
    assert (tmp_path / "out" / WEIGHTS_NAME).read_bytes() == (run / "final" / WEIGHTS_NAME).read_bytes()
    for name in ("before-after.png", "curve.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 600
    assert "note:" not in found.stderr
    local = prepare(run, REPO, tmp_path / "local")
    assert "config.yaml, which is published, names files that are not: model.path=model" in local.notes
    assert load_config(tmp_path / "local/config.yaml").model.path == "model"


def test_a_repository_replaces_neither_a_run_nor_what_somebody_wrote(run, tmp_path):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for place in (run, run / "final"):
        with pytest.raises(UsageError, match=r"holds a run.*choose another folder with -o"):
            prepare(run, REPO, place)
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(UsageError, match=r"would replace README\.md"):
        prepare(run, REPO, tmp_path)
    assert (tmp_path / "README.md").read_text() == "my project"
    assert {file: file.read_bytes() for file in before} == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    for _ in range(2):  # its own files it writes anew
        prepare(run, REPO, tmp_path / "out")
    (tmp_path / "out/README.md").write_text("a better card")
    with pytest.raises(UsageError, match="changed since"):
        prepare(run, REPO, tmp_path / "out")


def test_the_card_says_what_somebody_asks_first(run, tmp_path):
    upload = prepare(run, REPO, tmp_path, base_model="some/model", licence="apache-2.0")
    header, text, code = card_parts(upload.folder)
    assert header["base_model"] == "some/model"
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "diffusers"
    for part in ("# three-foxes", "`jpeg_compressibility`", "before-after.png", "curve.png", "rank 4, alpha 8", "2 rounds of 6",
                 "the model's own, 3 steps, guidance 3", "huggingface.co/some/model", "The adapter itself: apache-2.0.",
                 "| before | after |"):  # fmt: skip
        assert part in text, part
    assert len([line for line in code.splitlines() if line]) <= 5
    assert 'pipe.load_lora_weights("me/three-foxes")' in code
    assert re.search(r"\| JPEG size \| [\d.]+ ± [\d.]+ kB \| [\d.]+ ± [\d.]+ kB \|", text)


def test_the_card_says_what_the_base_models_licence_restricts(run):
    config = load_config(run / "config.yaml")

    def licence(base):
        return card(read_run(run), config, REPO, "FluxPipeline", base, None, []).split("## Licence")[1]

    said = licence("black-forest-labs/FLUX.1-dev")
    assert "\n**black\\-forest" in said or "\n**black-forest-labs/FLUX.1-dev is under the FLUX non-commercial licence" in said
    assert "its page on the Hub counts.**" in said
    assert "**" not in licence("black-forest-labs/FLUX.1-schnell")


def test_markup_in_what_the_card_quotes_is_shown_and_not_done(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    label, prompt = "<script>alert(1)</script>|`x`", "a fox\n\n```\n<img src=x>"
    saved = json.loads((run / "eval.json").read_text())
    for evaluation in saved["evaluations"]:
        evaluation["rewards"] = {label: evaluation["reward"], "total | <b>": evaluation["reward"]}
        evaluation |= {"judge": {"<i>animal": {"mean": 0.5, "ci95": 0.1}}, "images": "<u>4</u>"}
    saved["metric"] = {"reward": label, "label": label, "unit": "<b>|kB"}
    (tmp_path / "run/eval.json").write_text(json.dumps(saved))
    config = load_config(run / "config.yaml")
    rewards = [config.rewards[0].model_copy(update={"label": label})]
    config = config.model_copy(
        update={"rewards": rewards, "model": config.model.model_copy(update={"path": "/models/<b>`|mine"})}
    )
    found = read_run(tmp_path / "run")
    for text in (
        card(found, config, REPO, "StableDiffusionPipeline", None, "<b>mine", []),
        model_card(config, [{**e, "images": 4} for e in saved["evaluations"]], usage(config, REPO, "", None, prompt)),
    ):
        table = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[0]
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table
        assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|\\`x\\`" in table
        outside = re.sub(
            r"(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"^```python.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        )
        assert not re.search(r"<\w", outside.split("---\n", 2)[2])
        assert "`` <script>alert(1)</script>|`x` ``" in text
        assert len(re.findall("^```", text, re.MULTILINE)) == 2


def test_a_card_keeps_the_folders_of_this_machine_to_itself(run, tmp_path):
    upload = prepare(run, REPO, tmp_path)
    header, _, code = card_parts(upload.folder)
    assert "base_model" not in header
    assert "license" not in header
    assert str(run.parent) not in (upload.folder / "README.md").read_text()
    assert 'DiffusionPipeline.from_pretrained("model")' in code
    assert any("name it with --base-model" in note for note in upload.notes)


@pytest.mark.parametrize("case", ["lcm", "tcd", "with a LoRA"])
def test_the_cards_code_draws_the_tuned_pictures(case, tmp_path, monkeypatch):
    loras = []
    if case == "with a LoRA":
        loras = [{"path": str(finished_run(tmp_path / "base", *SD, 4, 8, 0.3).path / "final"), "scale": 0.5, "fuse": False}]
    make, sampler = LCM if case == "lcm" else (SD[0], {"guidance": 2.0, "scheduler": "tcd"} if case == "tcd" else SD[1])
    made = finished_run(tmp_path / "run", make, sampler, 4, 10, 0.3, model={"loras": loras})
    upload = prepare(made.path, REPO)
    code = card_parts(upload.folder)[2].replace(f'"{REPO}"', repr(str(upload.folder)))
    code = code.replace('from_pretrained("model"', f"from_pretrained({made.model!r}")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    exec(code, {})
    torch.manual_seed(3)
    expected = made.pipeline("a fox", num_inference_steps=3, guidance_scale=made.config.sampler.guidance,
                             **({"eta": 0.3} if case == "tcd" else {})).images[0]  # fmt: skip
    with Image.open(tmp_path / "picture.png") as picture:
        pairs = list(zip(picture.tobytes(), expected.tobytes(), strict=True))
    assert max(abs(a - b) for a, b in pairs) <= 1


def test_the_code_of_the_first_steps_is_the_cards():
    """That code is run above; the page's last step must not drift from it."""
    page = (Path(__file__).parents[2] / "docs" / "first-steps.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)\n```", page, flags=re.DOTALL)
    (prompt,) = re.findall(r'pipe\("([^"]+)"', code)
    assert known(prompt, {}), "the built-in model knows what it is asked for"
    assert code == usage(load_config(DEMO), "runs/demo/final", "LatentConsistencyModelPipeline", None, prompt)


def test_the_cards_code_names_what_the_run_set():
    config = tiny_config("x", model={"path": "a/b", "revision": "main", "height": 64}, sampler={"scheduler": "ddim", "steps": 50,
                         "guidance": 5.0, "negative_prompt": 'a "dog"'})  # fmt: skip
    code = usage(config, REPO, "StableDiffusionPipeline", "a/b", "a cat")
    assert 'from_pretrained("a/b", revision="main")' in code
    assert "DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)" in code
    call = 'pipe("a cat", num_inference_steps=50, guidance_scale=5.0, negative_prompt="a \\"dog\\"", eta=1.0, height=64)'
    assert call in code
    compile(code, "card", "exec")
    builtin = config.model_copy(update={"model": ModelSettings()})
    assert 'base = model_path("student")' in usage(builtin, REPO, "LatentConsistencyModelPipeline", None, "a cat")


def test_the_cards_code_says_how_flow_matching_was_sampled():
    def code(**sampler):
        found = usage(
            tiny_config("x", model={"path": "a/b"}, sampler={"guidance": None, **sampler}), REPO, "FluxPipeline", "a/b", "a cat"
        )
        compile(found, "card", "exec")
        return found

    line = "pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, stochastic_sampling="
    assert f"{line}True)" in code()
    assert f"{line}True)" in code(eta=1.0)
    assert f"{line}False)" in code(eta=0.0)
    assert "The run sampled with" not in code(eta=0.0)
    between = code(eta=0.5, noisy_steps=[0, 2])
    assert f"{line}False)" in between
    assert "# The run sampled with sampler.eta=0.5 and sampler.noisy_steps=[0, 2], which diffusers has not" in between
    assert "eta=" not in between.split("pipe(")[1]
    assert "FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, stochastic_sampling=True)" in code(
        scheduler="flow_euler_stochastic"
    )


@pytest.mark.parametrize("prompt", ["a\nb", 'a "b" \\', "a\tb\r", "```\nx", "a````b", "\u2028 ü 🦊 \x85", "\x07"])
def test_the_cards_code_holds_for_any_prompt(prompt):
    config = tiny_config("x", model={"path": "a/b"}, sampler={"negative_prompt": prompt})
    code = usage(config, REPO, "StableDiffusionPipeline", "a/b", prompt)
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert texts.count(prompt) == 2
    assert "```" not in code


def test_the_code_for_the_runs_folder_is_that_for_the_hub(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    config = tiny_config("x", model={"path": "a/b", "revision": "main", "variant": "fp16", "loras": [{"path": "base", "scale": 0.5}]},
                         sampler={"scheduler": "tcd", "guidance": 2.0})  # fmt: skip
    code = local_usage(config, "StableDiffusionPipeline")
    for line in (
        'pipe = DiffusionPipeline.from_pretrained("a/b", revision="main", variant="fp16")',
        f'pipe.load_lora_weights("{tmp_path / "base"}", adapter_name="base_0")',
        'pipe.load_lora_weights("final", adapter_name="tuned")',
        'pipe.set_adapters(["base_0", "tuned"], [0.5, 1.0])',
    ):
        assert line in code.splitlines(), line
    assert "pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config" in code
    code = local_usage(config, "PixArtAlphaPipeline")
    assert "rlcm export . --format merged" in code
    assert 'from_pretrained("export/merged")' in code
    assert "load_lora_weights" not in code
    compile(code, "card", "exec")


def test_the_card_of_a_run_that_went_on_is_of_what_is_pushed(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    looks = json.loads((run / "eval.json").read_text())
    later = looks["evaluations"][-1] | {"round": 3, "seconds": 9e5}
    (tmp_path / "run/eval.json").write_text(json.dumps(looks | {"evaluations": [*looks["evaluations"], later]}))
    config = load_config(run / "config.yaml")
    assert settings_of(read_run(tmp_path / "run"), config) == settings_of(read_run(run), config)
    assert headline(read_run(tmp_path / "run")) == headline(read_run(run))


def test_what_is_pushed_is_what_was_written(run, tmp_path, hub):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/diary.txt").write_text("not for others")
    found = rlcm("push", run, REPO, "-o", tmp_path / "out", "--private")
    assert found.exit_code == 0, found.output
    assert found.output.splitlines()[-1] == f"{hub.address}/{REPO}"
    assert hub.private == {REPO: True}
    assert hub.repositories[REPO] == {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    assert len(hub.large) == 3


def test_a_second_push_goes_into_the_same_repository(run, tmp_path, hub):
    upload = prepare(run, REPO, tmp_path)
    assert send(upload) == send(upload) == f"{hub.address}/{REPO}"
    assert hub.repositories.keys() == {REPO}


@pytest.mark.slow
def test_what_the_command_pushed_is_loaded_by_the_cards_code(run, tmp_path):
    with running_hub() as hub:
        environment = os.environ | {
            "PYTHONPATH": str(Path(cli.__file__).parents[2]),
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
        }

        def python(*args):
            done = subprocess.run(
                [sys.executable, *args], capture_output=True, text=True, env=environment, timeout=600, cwd=tmp_path
            )
            assert done.returncode == 0, done.stderr

        python("-m", "rlcm", "push", str(run), REPO, "-o", str(tmp_path / "out"))
        assert hub.repositories[REPO].keys() == FILES
        code = card_parts(tmp_path / "out")[2].replace('"model"', repr(str(run.parent / "model")))
        assert REPO in code
        python("-c", code)
        assert any(re.fullmatch(f"GET /{REPO}/resolve/.*/{WEIGHTS_NAME}", request) for request in hub.requests)
    assert (tmp_path / "picture.png").is_file()
    assert len(list((tmp_path / "cache").rglob(WEIGHTS_NAME))) == 1


def test_what_cannot_be_pushed_says_why(run, tmp_path, hub, monkeypatch):
    upload = prepare(run, REPO, tmp_path / "out")
    for name in ("small animals/x", "me/a/b", "alone", "me/-x", "me/" + "x" * 100):
        with pytest.raises(UsageError, match=r"REPO=.* is not a name on the Hub: .*Give user/name"):
            prepare(run, name, tmp_path / "no")
    with pytest.raises(UsageError, match=r"--base-model='\./here' is not a name"):
        prepare(run, REPO, tmp_path / "no", base_model="./here")
    assert not (tmp_path / "no").exists()
    hub.may_write = False
    found = rlcm("push", run, REPO, "-o", tmp_path / "out")
    assert found.exit_code == 1
    assert "the token may not write there: make one with write access, and check that me is yours" in found.output
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    found = rlcm("push", run, REPO, "-o", tmp_path / "out")
    assert found.exit_code == 1
    assert "the token is not valid" in found.output
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"there is no token .*HF_TOKEN or call `hf auth login`.*--dry-run"):
        send(upload)
    assert hub.repositories == {}


def test_a_run_that_has_not_ended_is_not_pushed(run, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(MissingFileError, match=r"holds no run"):
        prepare(tmp_path / "run", REPO)
    (tmp_path / "run/config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(MissingFileError, match=r"the run has not ended; go on with `rlcm train --resume"):
        prepare(tmp_path / "run", REPO)


def test_passwords_in_the_configuration_are_not_published(run, tmp_path):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / WEIGHTS_NAME).write_bytes((run / "final" / WEIGHTS_NAME).read_bytes())
    config = tiny_config(
        tmp_path,
        model={"path": str(run.parent / "model")},
        rewards=[{"name": "mine.py:f", "args": {"url": "http://me:secret@host:8000"}}],
    )
    (tmp_path / "config.yaml").write_text(config.dump())
    with pytest.raises(UsageError, match=r"rewards\.0\.args\.url holds an address with a user or password"):
        prepare(tmp_path, REPO)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("text", ['{"evaluations": [', "", "[]", '{"evaluations": 3}'])
def test_a_damaged_file_of_evaluations_is_said_and_not_published(run, tmp_path, text):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("hub"))
    (tmp_path / "run/eval.json").write_text(text)
    upload = prepare(tmp_path / "run", REPO, tmp_path / "out")
    assert any(note.startswith("eval.json is damaged and is not published") for note in upload.notes)
    assert "eval.json" not in upload.files
    assert not (tmp_path / "out/eval.json").exists()
